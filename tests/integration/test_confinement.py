"""What a QEMU that turned against us could reach: as little as can be."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from vms.cli import Inn
from vms.daemon import Daemon

pytestmark = pytest.mark.vm
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives each VM a user of its own")

FIRST_UID = 0x7000_0000


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.fixture
def helpers(daemon: Daemon, shared_vm: str) -> list[int]:
    """QEMU and passt of the shared VM (and of others that run now)."""
    return daemon.helpers()


@as_root
def test_each_vm_is_a_user_of_its_own(daemon: Daemon, shared_vm: str, started: str) -> None:
    uids = set()
    for name in (shared_vm, started):
        status = _status(daemon.show(name)["pid"])
        assert len(set(status["Uid"].split())) == 1 and len(set(status["Gid"].split())) == 1
        uids.add(int(status["Uid"].split()[0]))
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapAmb"], 16) == 0
        assert status["NoNewPrivs"] == "1"
    assert len(uids) == 2 and min(uids) >= FIRST_UID


def test_system_calls_are_filtered(daemon: Daemon, shared_vm: str) -> None:
    assert _status(daemon.show(shared_vm)["pid"])["Seccomp"] == "2"


@as_root
def test_no_process_of_a_vm_runs_as_root(helpers: list[int]) -> None:
    for pid in helpers:
        assert set(_status(pid)["Uid"].split()) != {"0"}, Path(f"/proc/{pid}/cmdline").read_bytes()


def test_nothing_listens_on_the_network(daemon: Daemon, helpers: list[int]) -> None:
    listening = {
        fields[9]
        for table in ("tcp", "tcp6")
        for fields in (line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:])
        if fields[3] == "0A"
    }
    for pid in [*helpers, daemon.pid]:
        open_sockets = {
            os.readlink(entry).removeprefix("socket:[").rstrip("]")
            for entry in Path(f"/proc/{pid}/fd").iterdir()
            if os.path.lexists(entry) and os.readlink(entry).startswith("socket:")
        }
        assert not open_sockets & listening, Path(f"/proc/{pid}/cmdline").read_bytes()


def test_directories_and_sockets_are_ours_alone(daemon: Daemon, shared_vm: str) -> None:
    vm = daemon.show(shared_vm)
    directories = [daemon.state, daemon.paths.run, daemon.paths.instances, daemon.paths.machines]
    for directory in [*directories, Path(vm["paths"]["state"]), Path(vm["paths"]["run"])]:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700, directory
    sockets = [path for path in Path(vm["paths"]["run"]).iterdir() if path.is_socket()]
    assert {path.name for path in sockets} >= {"qmp.sock", "console.sock", "agent.sock"}
    for path in [*sockets, daemon.paths.api_socket]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for path in Path(vm["paths"]["state"]).glob("*.log"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@as_root
def test_the_vms_user_cannot_open_disks_or_logs_by_path(daemon: Daemon, inn: Inn, boot_disk: Path) -> None:
    inn("run", boot_disk, "-d", "--memory", "16MiB", "--network", "none", "--name", "own").ok()
    try:
        vm = daemon.show("own")
        uid = int(_status(vm["pid"])["Uid"].split()[0])
        for path in [*Path(vm["paths"]["state"]).iterdir(), daemon.paths.store, daemon.paths.api_socket]:
            done = subprocess.run(
                ["cat", str(path)], user=uid, group=uid, extra_groups=[], capture_output=True, check=False
            )
            assert done.returncode != 0 and b"Permission denied" in done.stderr, path
    finally:
        inn("rm", "-f", "own").ok()


def test_qemu_has_no_descriptor_that_is_not_its_own(daemon: Daemon, shared_vm: str) -> None:
    """Files it may have: its image and logs, memory; no store, no other instance, no directory."""
    vm = daemon.show(shared_vm)
    own = (vm["paths"]["state"], f"{daemon.state}/images/")
    allowed = (*own, "/dev/", "/memfd:", "socket:", "anon_inode:", "pipe:")
    for entry in Path(f"/proc/{vm['pid']}/fd").iterdir():
        target = os.readlink(entry)
        assert target.startswith(allowed) or "urandom" in target, target


def test_the_command_line_tells_no_secrets(daemon: Daemon, inn: Inn, boot_disk: Path, tmp_path: Path) -> None:
    """Everybody on the host can read it."""
    data = tmp_path / "user-data"
    data.write_text("#cloud-config\npassword: hunter2\n")
    inn(
        "run", boot_disk, "-d", "--memory", "16MiB", "--network", "none", "--name", "own", "--user-data", data
    ).ok()
    try:
        vm = daemon.show("own")
        assert b"hunter2" not in Path(f"/proc/{vm['pid']}/cmdline").read_bytes()
        assert "hunter2" not in daemon.tail(100_000)
    finally:
        inn("rm", "-f", "own").ok()
