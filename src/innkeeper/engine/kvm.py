"""Does /dev/kvm really run code at hardware speed? The functional probe.

A KVM device can open, report API version 12 and create virtual CPUs, and still be useless: under a
page-table-based nested KVM each real-mode instruction is emulated (about 2 million per second) and a
stock Linux kernel never gets anywhere. So we run a counted loop in a vCPU, against a deadline, check
the sum it computes, and judge by its speed.

KVM_RUN may never return, so the loop runs in a child process (`kvm_child.py`). The child kills itself
with SIGALRM at the deadline; the parent gives up on it soon after, even if it cannot be killed.
"""

from __future__ import annotations

import errno
import grp
import json
import os
import pwd
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from innkeeper.engine.kvm_child import KVM_EXIT_HLT
from innkeeper.errors import CommandFailed, InnkeeperError

if TYPE_CHECKING:
    from innkeeper.drivers.run import Runner  # asyncio is not needed to read a cached verdict

Kind = Literal["hardware", "emulated", "broken", "missing"]

DEFAULT_DEVICE: Final = "/dev/kvm"
# The whole probe takes 30-100 ms where KVM works and 0.5 s where it is emulated; 3 s allows for a busy host.
PROBE_DEADLINE_S: Final = 3.0
# The child ends itself at its deadline; only when it does not do we end it from outside.
_PARENT_GRACE_S: Final = 1.0

# The fastest emulation of single instructions inside KVM is some 10 M/s (2 M/s measured under PVM);
# the slowest real execution, KVM nested in a TCG guest, several hundred M/s once it is warm, which is why
# the child tries more than once (kvm_child.PATIENCE_S). Between the two:
HARDWARE_MIN_INSTRUCTIONS_PER_S: Final = 50e6
# What Documentation/virt/kvm/api.rst (4.1) tells applications to insist on.
STABLE_API_VERSION: Final = 12
# A "broken" verdict is believed for this long only: the cause may have been an overloaded host. Not
# shorter, since each attempt may leave behind another process that cannot be killed.
BROKEN_RETRY_S: Final = 3600.0

# The child is a script of its own: it must start fast and depend on nothing.
_CHILD: Final = str(Path(__file__).with_name("kvm_child.py"))


@dataclass(frozen=True)
class Measurement:
    """What the child saw. `step` is the last thing it began: the culprit, if it never came back."""

    step: str = "start"
    errno: int = 0
    api_version: int = 0
    exit_reason: int = -1
    sum_correct: bool = False
    instructions: int = 0
    seconds: float = 0.0
    timed_out: bool = False
    complaint: str = ""


@dataclass(frozen=True)
class KvmVerdict:
    """`kind` decides (only `hardware` is worth using); `detail` is one line for people; `repair` the
    command that may help, or empty. `checked_boot_id` says for which boot of the host it holds."""

    kind: Kind
    detail: str
    instructions_per_s: float = 0.0
    api_version: int = 0
    checked_boot_id: str = ""
    repair: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge(
    seen: Measurement,
    *,
    boot_id: str = "",
    user: str = "USER",
    device: str = DEFAULT_DEVICE,
    group: str = "kvm",
) -> KvmVerdict:
    """The verdict that follows from a measurement: pure. `group` may open the device; empty: none may."""
    # Bounded, so that not even nonsense from the child overflows.
    rate = min(seen.instructions, 10**15) / max(seen.seconds, 1e-9) if seen.seconds > 0 else 0.0

    def verdict(kind: Kind, detail: str, repair: str = "") -> KvmVerdict:
        return KvmVerdict(kind, detail, round(rate), seen.api_version, boot_id, repair)

    if seen.timed_out:
        return verdict("broken", f"{seen.step} did not come back within the deadline")
    if seen.step == "open" and seen.errno in (errno.EACCES, errno.EPERM):
        if group:
            return verdict(
                "missing", f"no permission: add yourself to group {group}", f"usermod -aG {group} {user}"
            )
        return verdict(
            "missing",
            f"no permission: {device} is root's alone",
            f"{open_to_kvm(device)} && {join_kvm(user)}",
        )
    if seen.step == "open" and seen.errno == errno.ENOENT:
        return verdict("missing", f"there is no {device}", "modprobe kvm_intel || modprobe kvm_amd")
    if seen.step == "open" and seen.errno in (errno.ENODEV, errno.ENXIO):
        return verdict("missing", f"no driver behind {device}", "modprobe kvm_intel || modprobe kvm_amd")
    if seen.step == "architecture":
        return verdict("missing", f"the probe only knows x86_64, not {seen.complaint}")
    if seen.errno == errno.ENOTTY:
        return verdict("broken", f"{device} is not a KVM device")
    if seen.errno == errno.EBUSY and seen.step in ("KVM_CREATE_VM", "KVM_CREATE_VCPU"):
        return verdict("broken", "another hypervisor on this host holds the CPU's virtualization")
    if seen.errno:
        return verdict("broken", f"{seen.step}: {_reason(seen.errno)}")
    if seen.complaint or seen.step != "done":
        return verdict(
            "broken", f"the probe ended early at {seen.step}: {seen.complaint or 'no reason given'}"
        )
    if seen.api_version != STABLE_API_VERSION:
        return verdict("broken", f"API version {seen.api_version} instead of {STABLE_API_VERSION}")
    if seen.exit_reason != KVM_EXIT_HLT:
        return verdict("broken", f"the guest left with exit reason {seen.exit_reason} instead of HLT")
    if not seen.sum_correct:
        return verdict("broken", "the guest computed a wrong sum")
    if rate >= HARDWARE_MIN_INSTRUCTIONS_PER_S:
        return verdict("hardware", f"{_millions(rate)} instructions/s")
    return verdict(
        "emulated",
        f"instructions are emulated: {_millions(rate)}/s"
        f" (hardware: over {_millions(HARDWARE_MIN_INSTRUCTIONS_PER_S)}/s); TCG is faster and works",
    )


def open_to_kvm(device: str) -> str:
    return f"chgrp kvm {device} && chmod 0660 {device}"


def join_kvm(user: str) -> str:
    return f"usermod -aG kvm {user}"


def group_of(found: os.stat_result) -> str:
    """The group that may open a device; empty if none may, or only root's own."""
    if found.st_mode & 0o060 != 0o060 or found.st_gid == 0:
        return ""
    try:
        return grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        return ""  # nobody can join a group without a name


def _reason(number: int) -> str:
    return os.strerror(number) if number in errno.errorcode else f"error {number}"


def _millions(rate: float) -> str:
    return f"{rate / 1e6:.1f} M" if rate < 10e6 else f"{rate / 1e6:.0f} M"


def user_name() -> str:
    """Who we are, for the text of a repair."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return "USER"


def boot_id(root: Path = Path("/")) -> str:
    """The kernel's name for this boot, or empty where it gives none."""
    try:
        return (root / "proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


async def probe(
    runner: Runner,
    *,
    device: str = DEFAULT_DEVICE,
    deadline_s: float = PROBE_DEADLINE_S,
    argv: Sequence[str] | None = None,
) -> KvmVerdict:
    """Probe `device` now. Never raises for a bad device and never hangs: it returns after at most
    `deadline_s` plus the few seconds the runner spends on ending the child. `argv` replaces the
    child (tests)."""
    current, user = boot_id(), user_name()
    if argv is None:
        early = _look(device)
        if early is not None:
            return judge(early, boot_id=current, user=user, device=device, group=_group(device))
        argv = (sys.executable, "-I", "-S", _CHILD, device, f"{deadline_s:g}")
    lines: list[str] = []
    ended = True
    complaint = ""
    status = 0
    try:
        finished = await runner.run(
            argv, deadline_s=deadline_s + _PARENT_GRACE_S, check=False, on_line=lines.append
        )
        status = finished.status
        complaint = finished.complaint if status else ""
        lines = finished.text.splitlines()
    except CommandFailed:
        ended = False
    except (InnkeeperError, OSError) as error:
        complaint = f"cannot run the probe: {error}"
    timed_out = not ended or status == -signal.SIGALRM
    return judge(
        read_child(lines, timed_out=timed_out, complaint=complaint),
        boot_id=current,
        user=user,
        device=device,
        group=_group(device),
    )


def _group(device: str) -> str:
    try:
        return group_of(os.stat(device))
    except OSError:
        return ""


def _look(device: str) -> Measurement | None:
    """What needs no child: a device that is not there or not ours. Neither call can block, since
    neither opens it."""
    try:
        os.stat(device)
    except OSError as error:
        return Measurement("open", errno=error.errno or errno.ENOENT)
    if not os.access(device, os.R_OK | os.W_OK, effective_ids=True):
        return Measurement("open", errno=errno.EACCES)
    return None


def read_child(lines: Sequence[str], *, timed_out: bool = False, complaint: str = "") -> Measurement:
    """The measurement from the child's lines of JSON, each updating what is known so far. Lines
    and fields that are something else are ignored."""
    known: dict[str, Any] = {}
    for line in lines:
        try:
            data = json.loads(line)
        except ValueError:
            continue
        if isinstance(data, dict):
            known |= {key: value for key, value in data.items() if _fits(key, value)}
    if not timed_out and complaint and not known.get("errno"):
        known["complaint"] = complaint
    return Measurement(**{**known, "timed_out": timed_out})


def _fits(key: str, value: object) -> bool:
    """Whether this is a field of a Measurement and of its type."""
    declared = Measurement.__dataclass_fields__.get(key)
    return declared is not None and type(value) is type(declared.default)


def cached(
    cache_file: Path, device: str = DEFAULT_DEVICE, *, now_s: float | None = None
) -> KvmVerdict | None:
    """The stored verdict, if it is about this boot and this very device, else None."""
    try:
        data = json.loads(cache_file.read_text())
        verdict = KvmVerdict(**data["verdict"])
        age_s = (time.time() if now_s is None else now_s) - float(data["checked_at_s"])
        same = data["device"] == _device_key(device) and verdict.checked_boot_id == boot_id()
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not same or verdict.kind not in get_args(Kind):
        return None
    if verdict.kind == "broken" and not 0 <= age_s < BROKEN_RETRY_S:
        return None
    return verdict


def remember(cache_file: Path, verdict: KvmVerdict, device: str = DEFAULT_DEVICE) -> None:
    """Store a verdict. `missing` is not stored: looking costs nothing, and a user may be given
    access at any moment. A cache that cannot be written is no error."""
    if verdict.kind == "missing" or not verdict.checked_boot_id:
        return
    data = {"device": _device_key(device), "checked_at_s": time.time(), "verdict": verdict.to_dict()}
    write_json(cache_file, data)


async def load_or_probe(
    cache_file: Path,
    runner: Runner,
    *,
    device: str = DEFAULT_DEVICE,
    deadline_s: float = PROBE_DEADLINE_S,
    argv: Sequence[str] | None = None,
) -> KvmVerdict:
    """The verdict for this boot: from the cache, else from a probe whose result is stored."""
    known = cached(cache_file, device)
    if known is not None:
        return known
    verdict = await probe(runner, device=device, deadline_s=deadline_s, argv=argv)
    remember(cache_file, verdict, device)
    return verdict


def _device_key(device: str) -> list[int | str]:
    """Changes when the module is loaded again or the node's owner or mode changes."""
    try:
        found = os.stat(device)
    except OSError:
        return [device]
    return [device, found.st_dev, found.st_ino, found.st_rdev, found.st_mode, found.st_ctime_ns]


def write_json(path: Path, data: Mapping[str, Any]) -> bool:
    """Replace a cache file in one step, so that a reader never sees half of it; False when the disk
    is full or the directory is not ours."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w") as file:
            json.dump(data, file)
        os.replace(temporary, path)
    except OSError:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        return False
    return True
