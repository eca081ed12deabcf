"""The child that runs a loop in a vCPU of /dev/kvm: ``kvm_child.py DEVICE SECONDS``.

Started as a script by `kvm.probe`, with `-I -S`: nothing but the standard library, and little of it.
Prints one JSON object per line, first each step before it is tried, then the result; kills itself
with SIGALRM at the deadline, so that it does not outlive whoever started it.

Source of the interface: Linux, Documentation/virt/kvm/api.rst and include/uapi/linux/kvm.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import signal
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

FIRST_INSTRUCTIONS: Final = 20_000
# Hardware runs the first loop in microseconds, which entering the guest would dominate: each next
# loop is ten times longer, until one lasts this long or has this many instructions (10 ms at 2 GHz).
ENOUGH_S: Final = 0.005
MAX_INSTRUCTIONS: Final = 20_000_000
# That loop is run again, since a first one may be slow for other reasons than the CPU: a nested host that is
# emulated itself was seen at 54 M/s in its first loop and at 1075 M/s in a later one. The fastest counts, and
# it ends with one that leaves no doubt, or after this time: no emulation gets faster by trying again.
NO_DOUBT_PER_S: Final = 200e6
PATIENCE_S: Final = 0.4

_KVM_GET_API_VERSION: Final = 0xAE00
_KVM_CREATE_VM: Final = 0xAE01
_KVM_GET_VCPU_MMAP_SIZE: Final = 0xAE04
_KVM_CREATE_VCPU: Final = 0xAE41
_KVM_SET_TSS_ADDR: Final = 0xAE47
_KVM_SET_USER_MEMORY_REGION: Final = 0x4020AE46
_KVM_RUN: Final = 0xAE80
_KVM_GET_REGS: Final = 0x8090AE81
_KVM_SET_REGS: Final = 0x4090AE82
_KVM_GET_SREGS: Final = 0x8138AE83
_KVM_SET_SREGS: Final = 0x4138AE84
KVM_EXIT_HLT: Final = 5
_REGS: Final = struct.Struct("<18Q")  # struct kvm_regs: rax rbx rcx rdx ... rip (16) rflags (17)
_SREGS_BYTES: Final = 312

_CODE_ADDRESS: Final = 0x1000
# 16-bit code: again: add eax, ecx; dec ecx; jnz again; hlt
_CODE: Final = bytes.fromhex("6601c8 6649 75f9 f4")
_INSTRUCTIONS_PER_TURN: Final = 3


def _report(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def _measure(device: str) -> None:
    """Report each step before it is tried, then the result. Raises OSError where KVM refuses."""
    if platform.machine() != "x86_64":
        return _report(step="architecture", complaint=platform.machine())
    _report(step="open")
    kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    _report(step="KVM_GET_API_VERSION")
    _report(api_version=fcntl.ioctl(kvm, _KVM_GET_API_VERSION, 0))
    _report(step="KVM_CREATE_VM")
    vm = fcntl.ioctl(kvm, _KVM_CREATE_VM, 0)
    memory = mmap.mmap(-1, 0x4000)
    memory[: len(_CODE)] = _CODE
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _report(step="KVM_SET_USER_MEMORY_REGION")
    # struct kvm_userspace_memory_region: slot, flags, guest_phys_addr, memory_size, userspace_addr
    region = struct.pack("<IIQQQ", 0, 0, _CODE_ADDRESS, len(memory), address)
    fcntl.ioctl(vm, _KVM_SET_USER_MEMORY_REGION, region)
    with contextlib.suppress(OSError):
        # Old Intel CPUs run real mode as a virtual-8086 task and want three pages below 4 GiB for it
        # (api.rst, KVM_SET_TSS_ADDR); AMD has no use for them.
        fcntl.ioctl(vm, _KVM_SET_TSS_ADDR, 0x40000000)
    _report(step="KVM_CREATE_VCPU")
    vcpu = fcntl.ioctl(vm, _KVM_CREATE_VCPU, 0)
    shared = mmap.mmap(vcpu, fcntl.ioctl(kvm, _KVM_GET_VCPU_MMAP_SIZE, 0))
    _report(step="KVM_SET_SREGS")
    sregs = bytearray(_SREGS_BYTES)
    fcntl.ioctl(vcpu, _KVM_GET_SREGS, sregs)
    # struct kvm_segment of cs comes first: base (u64), limit (u32), selector (u16)
    struct.pack_into("<QIH", sregs, 0, 0, 0xFFFF, 0)
    fcntl.ioctl(vcpu, _KVM_SET_SREGS, bytes(sregs))
    _report(step="KVM_RUN")
    _run_loops(vcpu, shared)


def _run_loops(vcpu: int, shared: mmap.mmap) -> None:
    """Ever longer loops until one is long enough to measure, then that one at least once more. The fastest
    counts, since other work on the host only ever makes it slower."""
    wanted, measured, best = FIRST_INSTRUCTIONS, 0, (0, 1.0)
    begun = time.perf_counter()
    while True:
        count, seconds, exit_reason, correct = _run_once(vcpu, shared, wanted)
        if count / seconds > best[0] / best[1]:
            best = (count, seconds)
        if exit_reason != KVM_EXIT_HLT or not correct:
            break
        if measured or seconds >= ENOUGH_S or wanted >= MAX_INSTRUCTIONS:
            measured += 1
            sure = best[0] / best[1] >= NO_DOUBT_PER_S
            if measured > 1 and (sure or time.perf_counter() - begun >= PATIENCE_S):
                break
        else:
            wanted = min(wanted * 10, MAX_INSTRUCTIONS)
    _report(step="done", exit_reason=exit_reason, sum_correct=correct, instructions=best[0], seconds=best[1])


def _run_once(vcpu: int, shared: mmap.mmap, instructions: int) -> tuple[int, float, int, bool]:
    """Instructions run, seconds, exit reason, and whether the guest's sum is right."""
    turns = instructions // _INSTRUCTIONS_PER_TURN
    regs = [0] * 18
    regs[2], regs[16], regs[17] = turns, _CODE_ADDRESS, 2  # rcx, rip, rflags (bit 1 is always set)
    fcntl.ioctl(vcpu, _KVM_SET_REGS, _REGS.pack(*regs))
    begun = time.perf_counter()
    fcntl.ioctl(vcpu, _KVM_RUN, 0)
    seconds = max(time.perf_counter() - begun, 1e-9)
    exit_reason: int = struct.unpack_from("<I", shared, 8)[0]  # struct kvm_run
    raw = bytearray(_REGS.size)
    fcntl.ioctl(vcpu, _KVM_GET_REGS, raw)
    after = _REGS.unpack(raw)
    correct = after[0] & 0xFFFFFFFF == turns * (turns + 1) // 2 & 0xFFFFFFFF and after[2] == 0
    return turns * _INSTRUCTIONS_PER_TURN + 1, seconds, exit_reason, correct


def main(argv: Sequence[str]) -> int:
    """The child: DEVICE SECONDS. Prints one JSON object per line; killed by SIGALRM at the deadline."""
    device = argv[0] if argv else "/dev/kvm"
    deadline_s = float(argv[1]) if len(argv) > 1 else 3.0
    # The default action ends us inside the kernel; a Python handler would wait for KVM_RUN to return.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM, signal.SIGTERM})
    signal.setitimer(signal.ITIMER_REAL, deadline_s)
    try:
        _measure(device)
    except OSError as error:
        _report(errno=error.errno or errno.EIO)
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # the kernel frees the VM; no interpreter clean-up of memory it maps
