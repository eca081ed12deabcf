"""The host around the VMs: cgroups, kernel interfaces, limits, disk space, the session, the service."""

from __future__ import annotations

import errno
import importlib.resources
import os
import resource
from pathlib import Path
from typing import Final

from innkeeper.agent import probes, sysfs
from innkeeper.agent.doctor.base import DoctorContext, Finding, Verdict, check
from innkeeper.drivers.cgrouptree import how_to_get
from innkeeper.errors import CommandFailed, Unsupported
from innkeeper.units import GiB, human_size

# What shares, limits, priorities and statistics of a VM need; hugetlb, freezer and devices are extras.
_WANTED: Final = frozenset({"cpu", "memory", "cpuset", "pids"})
_IO_CONTROLLERS: Final = frozenset({"io", "blkio"})

# A full Debian image with one overlay is about 1 GiB; builds unpack several of them.
_SPACE_FAIL_BYTES: Final = 1 * GiB
_SPACE_WARN_BYTES: Final = 10 * GiB
# The daemon holds some 16 descriptors per VM (QMP, console, log, pidfd, disks on their way to QEMU).
_FILES_FAIL: Final = 1024
_FILES_WARN: Final = 8192
_SUBIDS_WANTED: Final = 65536
UNIT: Final = "innkeeper.service"


@check("cgroups")
def check_cgroups(context: DoctorContext) -> Finding:
    """Makes and removes a cgroup in every hierarchy."""
    version, controllers = sysfs.cgroups(context.root, context.uid)
    if not controllers:
        return Finding(
            "cgroups",
            "warn" if context.privileged else "info",
            "no controller is mounted or given to us: no shares, no limits",
            "" if context.privileged else how_to_get(False, context.root),
        )
    usable, refused = set[str](), dict[str, list[str]]()
    works: dict[str, str] = {}
    for one in controllers:
        if one.base not in works:
            works[one.base] = _try_cgroup(Path(one.base))
        if works[one.base]:
            refused.setdefault(works[one.base], []).append(one.name)
        else:
            usable.add(one.name)
    lacking = sorted(_WANTED - usable) + ([] if usable & _IO_CONTROLLERS else ["io"])
    detail = f"{version}; usable: {', '.join(sorted(usable)) or 'none'}"
    if refused:
        detail += "".join(f"; {reason}: {', '.join(names)}" for reason, names in refused.items())
    if not lacking:
        return Finding("cgroups", "ok", detail)
    repair = ""
    if not context.privileged:
        repair = how_to_get(False, context.root)
    elif version == "v2":
        base = controllers[0].base
        repair = f"echo '{' '.join(f'+{name}' for name in lacking)}' > {base}/cgroup.subtree_control"
    verdict: Verdict = "warn" if context.privileged else "info"
    return Finding("cgroups", verdict, f"{detail}; lacks {', '.join(lacking)}", repair)


def _try_cgroup(base: Path) -> str:
    """Empty if a child cgroup could be made and removed below `base`, else why not."""
    child = base / f"innkeeper-doctor-{os.getpid()}"
    try:
        child.mkdir()
        child.rmdir()
    except OSError as error:
        return error.strerror or str(error)
    return ""


@check("io-uring")
def check_io_uring(context: DoctorContext) -> Finding:
    """Sets up a ring, as QEMU does for aio=io_uring."""
    try:
        features = probes.try_io_uring()
    except OSError as error:
        file = context.path("proc/sys/kernel/io_uring_disabled")
        disabled = sysfs.read_text(file) not in ("", "0")
        repair = "sysctl kernel.io_uring_disabled=0" if error.errno == errno.EPERM and disabled else ""
        return Finding("io-uring", "info", f"refused ({error.strerror}): disks use threads instead", repair)
    return Finding("io-uring", "ok", f"a ring can be set up, feature bits {features:#x}")


@check("user-namespaces")
async def check_user_namespaces(context: DoctorContext) -> Finding:
    """Makes one, in a child: image builds without root need it."""
    try:
        await context.runner.run(["unshare", "--user", "--map-root-user", "true"], deadline_s=5)
    except Unsupported as error:
        return Finding("user-namespaces", "info", error.message, "apt-get install -y util-linux")
    except CommandFailed as error:
        level: Verdict = "info" if context.privileged else "warn"
        switch = context.path("proc/sys/kernel/unprivileged_userns_clone")
        off = sysfs.read_text(switch) == "0"
        repair = (
            "sysctl kernel.unprivileged_userns_clone=1" if off else "sysctl user.max_user_namespaces=15000"
        )
        return Finding("user-namespaces", level, error.message, repair)
    return Finding("user-namespaces", "ok", "one was made, with root mapped in it")


@check("subuid")
def check_subuid(context: DoctorContext) -> Finding:
    """Ids for a user's builds (subuid(5)); root has all ids anyway."""
    if context.privileged:
        return Finding("subuid", "info", "not needed: running as root")
    counts = [_sub_ids(context, name) for name in ("subuid", "subgid")]
    detail = f"{counts[0]} subordinate users and {counts[1]} groups for {context.user}"
    if min(counts) >= _SUBIDS_WANTED:
        return Finding("subuid", "ok", detail)
    repair = f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {context.user}"
    return Finding("subuid", "warn", f"{detail}: image builds need {_SUBIDS_WANTED}", repair)


def _sub_ids(context: DoctorContext, name: str) -> int:
    total = 0
    for line in sysfs.read_text(context.path(f"etc/{name}")).splitlines():
        who, _, rest = line.partition(":")
        _, _, count = rest.partition(":")
        if who in (context.user, str(context.uid)) and count.isdigit():
            total += int(count)
    return total


@check("space")
def check_space(context: DoctorContext) -> Finding:
    free = sysfs.free_bytes(context.state_dir)
    detail = f"{human_size(free)} free for {context.state_dir}"
    if free < _SPACE_FAIL_BYTES:
        return Finding("space", "fail", f"{detail}: under {human_size(_SPACE_FAIL_BYTES)}")
    if free < _SPACE_WARN_BYTES:
        return Finding("space", "warn", f"{detail}: under {human_size(_SPACE_WARN_BYTES)}")
    return Finding("space", "ok", detail)


@check("open-files")
def check_open_files(context: DoctorContext) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = float("inf") if hard == resource.RLIM_INFINITY else hard
    detail = f"limit {soft}, may be raised to {hard if allowed != float('inf') else 'any number'}"
    if allowed >= _FILES_WARN:
        return Finding("open-files", "ok", f"{detail}; the daemon does so itself")
    repair = "echo '* hard nofile 65536' > /etc/security/limits.d/innkeeper.conf"
    verdict: Verdict = "fail" if allowed < _FILES_FAIL else "warn"
    return Finding("open-files", verdict, f"{detail}: about {int(allowed) // 16} VMs", repair)


@check("session")
def check_session(context: DoctorContext) -> Finding:
    """A user's daemon keeps its sockets in XDG_RUNTIME_DIR (XDG base directory specification)."""
    if context.privileged:
        return Finding("session", "info", "system mode: running as root")
    folder = context.environ.get("XDG_RUNTIME_DIR", "")
    if not folder:
        repair = f"export XDG_RUNTIME_DIR=/run/user/{context.uid}; sudo loginctl enable-linger {context.user}"
        return Finding("session", "warn", "XDG_RUNTIME_DIR is not set: sockets go below /tmp", repair)
    try:
        found = os.stat(folder)
    except OSError as error:
        repair = f"sudo loginctl enable-linger {context.user}"
        return Finding("session", "warn", f"XDG_RUNTIME_DIR {folder}: {error.strerror}", repair)
    if found.st_uid != context.uid or not os.access(folder, os.W_OK):
        repair = f"export XDG_RUNTIME_DIR=/run/user/{context.uid}"
        return Finding("session", "warn", f"XDG_RUNTIME_DIR {folder} is not yours", repair)
    return Finding("session", "ok", f"XDG_RUNTIME_DIR is {folder}")


@check("service")
def check_service(context: DoctorContext) -> Finding:
    """Whether systemd starts the daemon at boot; without systemd `inn serve` does it by hand."""
    if not context.path("run/systemd/system").is_dir():
        return Finding("service", "info", "systemd does not run here: start the daemon with `inn serve`")
    for folder in ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"):
        if context.path(f"{folder}/{UNIT}").exists():
            wanted = context.path(f"etc/systemd/system/multi-user.target.wants/{UNIT}").is_symlink()
            if wanted:
                return Finding("service", "ok", f"{UNIT} is installed and starts at boot")
            return Finding(
                "service", "info", f"{UNIT} is installed, but not enabled", f"systemctl enable --now {UNIT}"
            )
    shipped = Path(str(importlib.resources.files("innkeeper"))) / "daemon" / UNIT
    repair = f"systemctl enable --now {shipped}" if context.privileged and shipped.exists() else ""
    return Finding("service", "info", f"{UNIT} is not installed: VMs are not started at boot", repair)
