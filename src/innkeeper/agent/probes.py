"""Small questions to the kernel, each one or two system calls: is this facility really there?

All are synchronous and raise OSError where the kernel refuses. `in_daemon_thread` runs one without
ever making the caller wait for it: neither `asyncio.run` nor the end of the program joins such a
thread, so a call that hangs in the kernel costs one thread and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# include/uapi/linux/sockios.h, if_tun.h, vhost.h
_SIOCGIFBR: Final = 0x8940
_SIOCBRADDBR: Final = 0x89A0
_SIOCBRDELBR: Final = 0x89A1
_BRCTL_GET_BRIDGES: Final = 1
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_VHOST_GET_FEATURES: Final = 0x8008AF00
_NR_IO_URING_SETUP: Final = 425  # the same on every architecture
_IO_URING_PARAMS_BYTES: Final = 120
_NETLINK_NETFILTER: Final = 12
_NFNL_SUBSYS_NFTABLES: Final = 10
_NFT_MSG_GETGEN: Final = 16
_NLM_F_REQUEST: Final = 1
_NLMSG_ERROR: Final = 2
# A netlink answer comes at once or not at all.
_NETLINK_WAIT_S: Final = 1.0

_PROBE_HUGE_BYTES: Final = 8 * 1024 * 1024


async def in_daemon_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `function(*args)`, run in a daemon thread. A cancelled caller leaves the thread
    to itself."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            # Neither a future nor a task may carry StopIteration, SystemExit or KeyboardInterrupt.
            usual = isinstance(error, Exception) and not isinstance(error, StopIteration)
            failure = error if usual else RuntimeError(repr(error))
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, daemon=True, name=getattr(function, "__name__", "probe")).start()
    return await future


def bridge_count() -> int:
    """How many bridges there are; raises OSError (ENOPKG) where the kernel has no bridge code.
    Needs no privilege, and loads the module where there is one."""
    indices = (ctypes.c_int * 1024)()
    request = (ctypes.c_ulong * 3)(_BRCTL_GET_BRIDGES, ctypes.addressof(indices), 1024)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        count: int = fcntl.ioctl(sock, _SIOCGIFBR, bytearray(bytes(request)))
    return count


def add_bridge(name: str) -> None:
    """Needs CAP_NET_ADMIN."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCBRADDBR, name.encode() + b"\0")


def delete_bridge(name: str) -> None:
    """The bridge must be down."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCBRDELBR, name.encode() + b"\0")


def try_tap(name: str, device: str = "/dev/net/tun") -> None:
    """Make a tap and let it go: it disappears with the descriptor, since it is not made persistent.
    Opening needs the right on the node, making needs CAP_NET_ADMIN."""
    handle = os.open(device, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    finally:
        os.close(handle)


def nf_tables_generation() -> int:
    """Ask nf_tables for its generation number (NFT_MSG_GETGEN): answers only where nftables is
    built in or could be loaded. Raises PermissionError without CAP_NET_ADMIN, OSError (EINVAL)
    without nf_tables, EPROTONOSUPPORT without nfnetlink."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
        sock.settimeout(_NETLINK_WAIT_S)
        sock.bind((0, 0))
        kind = _NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_GETGEN
        # struct nlmsghdr: length, type, flags, seq, pid; struct nfgenmsg: family, version, res_id
        sock.send(struct.pack("=IHHIIBBH", 20, kind, _NLM_F_REQUEST, 1, 0, 0, 0, 0))
        answer = sock.recv(4096)
    if struct.unpack_from("=H", answer, 4)[0] == _NLMSG_ERROR:
        code = -struct.unpack_from("=i", answer, 16)[0]
        raise OSError(code, os.strerror(code))
    # The first attribute, NFTA_GEN_ID, is a big-endian u32.
    generation: int = struct.unpack_from(">I", answer, 24)[0] if len(answer) >= 28 else 0
    return generation


def vhost_features(device: str = "/dev/vhost-net") -> int:
    """The feature bits vhost-net offers."""
    handle = os.open(device, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        raw = bytearray(8)
        fcntl.ioctl(handle, _VHOST_GET_FEATURES, raw)
        return int.from_bytes(raw, "little")
    finally:
        os.close(handle)


def try_io_uring() -> int:
    """Set up a ring of 8 entries and close it; the features it has. Raises OSError: ENOSYS (not
    built in), EPERM (sysctl kernel.io_uring_disabled or seccomp), ENOMEM (RLIMIT_MEMLOCK)."""
    libc = ctypes.CDLL(None, use_errno=True)
    params = ctypes.create_string_buffer(_IO_URING_PARAMS_BYTES)
    handle = libc.syscall(ctypes.c_long(_NR_IO_URING_SETUP), ctypes.c_uint(8), params)
    if handle < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    os.close(handle)
    # struct io_uring_params: sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features
    return int.from_bytes(params.raw[20:24], "little")


def ksm_accepted() -> bool:
    """Whether the kernel takes MADV_MERGEABLE, that is, has KSM at all."""
    with mmap.mmap(-1, 2 * mmap.PAGESIZE) as memory:
        try:
            memory.madvise(mmap.MADV_MERGEABLE)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
    return True


def huge_page_given() -> int:
    """Bytes of transparent huge pages the kernel gives to memory that asks for them (8 MiB, touched
    and freed again); 0 where it gives none, for example with `never`."""
    before = _anonymous_huge_bytes()
    with mmap.mmap(-1, _PROBE_HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            return 0
        for offset in range(0, _PROBE_HUGE_BYTES, mmap.PAGESIZE):
            memory[offset] = 1
        return max(0, _anonymous_huge_bytes() - before)


def _anonymous_huge_bytes() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("AnonHugePages:"):
            return int(line.split()[1]) * 1024
    return 0


def clock_read_ns(reads: int = 2000) -> float:
    """Nanoseconds one reading of the clock takes: some 50 from the vDSO, 500 and more by a system
    call, microseconds when the clock source is a device. The best of five rounds counts."""
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter_ns()
        for _ in range(reads):
            time.monotonic_ns()
        best = min(best, (time.perf_counter_ns() - begun) / reads)
    return best
