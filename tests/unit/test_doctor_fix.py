"""`inn doctor --fix`: what it repairs, what it only tells, and no success it did not see."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest
from doctor_fakes import FakeRunner, context, put

from innkeeper.agent import probes
from innkeeper.agent.doctor import CHECKS, Finding, fix
from innkeeper.agent.doctor.repairs import REPAIRS
from innkeeper.drivers.run import FaultyRunner, SystemRunner
from innkeeper.errors import CommandFailed

NO_PASST = Finding("passt", "warn", "x", "apt-get install -y passt", True, ("passt",))
NO_TOOLS = Finding("image-tools", "warn", "x", "apt-get install -y cpio", True, ("cpio", "passt"))


def test_a_user_is_told_the_command(tmp_path: Path) -> None:
    runner = FakeRunner()
    results = asyncio.run(fix([NO_PASST, Finding("a", "ok", "fine")], context(tmp_path, runner, uid=1000)))
    assert [(one.name, one.done) for one in results] == [("passt", False)]
    assert results[0].detail == "needs root: sudo sh -c 'apt-get install -y passt'"
    assert runner.calls == []


def test_packages_go_into_one_installation_which_is_checked(tmp_path: Path) -> None:
    runner = FakeRunner({"apt-get": b""})
    results = asyncio.run(fix([NO_PASST, NO_TOOLS], context(tmp_path, runner)))
    (command,) = runner.calls
    assert command[:3] == ("apt-get", "install", "-y")
    assert command[-3:] == ("--", "passt", "cpio")
    # It went through, but the programs are still not there: no success is claimed.
    assert [one.done for one in results] == [False, False]
    assert "still: not installed" in results[0].detail
    installed = context(tmp_path, FakeRunner({"apt-get": b""}), find=lambda name: f"/usr/bin/{name}")
    assert [one.done for one in asyncio.run(fix([NO_TOOLS], installed))] == [True]


def test_an_installation_that_fails_is_tried_once_more_after_an_update(tmp_path: Path) -> None:
    runner = FaultyRunner(SystemRunner(), fail={"apt-get": CommandFailed("no network")})
    results = asyncio.run(fix([NO_PASST], context(tmp_path, runner)))
    assert [(one.done, one.detail) for one in results] == [(False, "no network")]
    assert [call[1] for call in runner.calls] == ["install", "update"]


def test_one_failing_repair_stops_no_other(tmp_path: Path) -> None:
    runner = FaultyRunner(FakeRunner(), fail={"apt-get": RuntimeError("a bug"), "modprobe": OSError(5, "io")})
    wanted = [
        NO_PASST,
        Finding("bridge", "warn", "x", "modprobe bridge", True),
        Finding("nobody knows", "warn", "x", "?", True),
    ]
    results = asyncio.run(fix(wanted, context(tmp_path, runner)))
    assert [(one.name, one.done) for one in results] == [(one.name, False) for one in wanted]
    assert results[0].detail == "a bug"
    assert results[2].detail == "no repair is known"


def test_the_second_module_is_tried_when_the_first_does_not_load(tmp_path: Path) -> None:
    def modprobe(argv: tuple[str, ...]) -> bytes | Exception:
        return CommandFailed("no such CPU") if argv[1] == "kvm_intel" else b""

    runner = FakeRunner({"modprobe": modprobe})
    (result,) = asyncio.run(fix([Finding("kvm", "warn", "x", "y", True)], context(tmp_path, runner)))
    assert runner.calls == [("modprobe", "kvm_intel"), ("modprobe", "kvm_amd")]
    assert not result.done and "still: missing" in result.detail


def test_a_missing_tun_node_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int, int]] = []
    monkeypatch.setattr(os, "mknod", lambda *args: (made.append(args), put(tmp_path, "dev/net/tun"))[1])
    monkeypatch.setattr(probes, "try_tap", lambda *args: None)
    (result,) = asyncio.run(fix([Finding("tun", "warn", "x", "y", True)], context(tmp_path)))
    assert made == [(f"{tmp_path}/dev/net/tun", stat.S_IFCHR | 0o666, os.makedev(10, 200))]
    assert result.done


def test_only_a_device_is_given_to_group_kvm(tmp_path: Path) -> None:
    put(tmp_path, "dev/kvm")
    before = (tmp_path / "dev/kvm").stat()
    (result,) = asyncio.run(fix([Finding("kvm-access", "info", "x", "y", True)], context(tmp_path)))
    assert not result.done
    after = (tmp_path / "dev/kvm").stat()
    assert (after.st_mode, after.st_gid) == (before.st_mode, before.st_gid)


def test_every_repair_belongs_to_a_check() -> None:
    assert set(REPAIRS) <= set(CHECKS)
