"""State directories that are damaged, foreign, or from before a reboot: each is told in one line."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vms.daemon import Daemon

pytestmark = pytest.mark.vm

Spec = Callable[..., dict[str, Any]]
Fresh = Callable[..., Daemon]


@pytest.fixture
def with_vm(fresh: Fresh, small: Spec) -> Daemon:
    """A daemon that is stopped and has one stopped instance."""
    daemon = fresh()
    daemon.client.instances.create(small(), name="kept", wait="running")
    assert daemon.stop() == 0
    return daemon


def _overwritten(store: Path) -> None:
    data = bytearray(store.read_bytes())
    for at in range(4096, len(data), 512):
        data[at : at + 64] = b"\xff" * 64
    store.write_bytes(data)


def _no_database(store: Path) -> None:
    store.write_bytes(b"these are my notes, not a database\n" * 300)


def _cut(store: Path) -> None:
    store.write_bytes(store.read_bytes()[:5000])


def _emptied(store: Path) -> None:
    store.write_bytes(b"")


def _of_another_program(store: Path) -> None:
    store.unlink()
    connection = sqlite3.connect(store)
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("damage", [_overwritten, _no_database, _cut, _emptied, _of_another_program])
def test_a_damaged_store_is_told(with_vm: Daemon, damage: Callable[[Path], None]) -> None:
    daemon = with_vm
    for extra in daemon.state.glob("store.db-*"):
        extra.unlink()
    saved = daemon.paths.store.read_bytes()
    damage(daemon.paths.store)
    daemon.inn("serve").failed(1, "store.db")
    daemon.inn("list").failed(1, "store.db")  # by way of a daemon started in the background
    # The disks are untouched, and with the store restored all is as before.
    daemon.paths.store.write_bytes(saved)
    daemon.start()
    assert daemon.names() == ["kept"]
    assert daemon.client.instances.handle("kept").start().state == "running"


def test_a_missing_store_with_instances_is_told(with_vm: Daemon) -> None:
    daemon = with_vm
    saved = daemon.state / "saved"
    daemon.paths.store.rename(saved)
    for extra in daemon.state.glob("store.db-*"):
        extra.unlink()
    daemon.inn("serve").failed(1, "store.db", "missing", "disks of 1 instance")
    assert not daemon.paths.store.exists(), "no empty store may take its place"
    saved.rename(daemon.paths.store)
    daemon.start()
    assert daemon.names() == ["kept"]


def test_a_state_directory_of_another_machine_is_refused(with_vm: Daemon) -> None:
    daemon = with_vm
    owner = daemon.state / "host.json"
    owner.write_text(json.dumps({"machine_id": "0" * 32}) + "\n")
    daemon.inn("serve").failed(4, "another machine", "--take-over")
    daemon.start("--take-over")
    assert daemon.names() == ["kept"]
    daemon.stop()
    daemon.start()


def test_a_damaged_owner_file_is_told(with_vm: Daemon) -> None:
    daemon = with_vm
    owner = daemon.state / "host.json"
    owner.write_text("{")
    daemon.inn("serve").failed(1, "host.json", "damaged")
    owner.unlink()


def test_after_a_reboot_nothing_is_taken_for_running(fresh: Fresh, small: Spec) -> None:
    """The host was switched off while VMs ran: the store still says they run, in another boot."""
    daemon = fresh()
    for name, policy in (("once", "never"), ("service", "always")):
        daemon.client.instances.create(small(restart_policy=policy), name=name, start=True, wait="running")
    daemon.kill()
    for pid in daemon.qemus().values():
        _kill_silently(pid)
    shutil.rmtree(daemon.paths.run)  # a tmpfs in system mode
    _rewrite_boot_id(daemon.paths.store)
    daemon.start()
    once = daemon.watch("once", lambda vm: vm["state"] == "stopped", "is stopped")
    assert once["status"]["ended"]["reason"] == "host-rebooted"
    assert "host was restarted" in once["note"]
    assert once["pid"] == 0 and not once["ready"]
    daemon.watch("service", lambda vm: vm["state"] == "running", "was started by its policy")


def _kill_silently(pid: int) -> None:
    from vms import traces
    from vms.waiting import eventually

    traces.kill(pid)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "it is gone")


def _rewrite_boot_id(store: Path) -> None:
    """In every status, as an earlier boot of this host would have written it."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    connection = sqlite3.connect(store)
    with connection:
        changed = connection.execute(
            "UPDATE log SET value = CAST(replace(CAST(value AS TEXT), ?, ?) AS BLOB)"
            " WHERE key LIKE 'status/%'",
            (boot_id, "00000000-0000-0000-0000-000000000000"),
        ).rowcount
    connection.close()
    assert changed > 0


def test_a_state_directory_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    from vms.cli import Inn

    file = tmp_path / "file"
    file.write_text("")
    Inn(file / "state")("list").failed(1, str(file), "not a directory")
    Inn(file / "state")("serve").failed(1, str(file), "not a directory")
    Inn(tmp_path / ("long" * 30))("list").failed(2, "too long")


def test_files_of_no_instance_are_left_alone_and_reported(with_vm: Daemon) -> None:
    daemon = with_vm
    stray = daemon.paths.instances / "11111111-2222-4333-8444-555555555555"
    stray.mkdir()
    (stray / "root.qcow2").write_bytes(b"somebody's data")
    daemon.start()
    assert (stray / "root.qcow2").exists(), "not ours to destroy"
    assert str(stray) in daemon.tail()
    shutil.rmtree(stray)
