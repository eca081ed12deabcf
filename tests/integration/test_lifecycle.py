"""The life of instances by the command line: every verb, and what it leaves."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vms import traces
from vms.bootables import GREETING
from vms.cli import Inn
from vms.daemon import Daemon
from vms.terminal import CTRL_BRACKET, Terminal
from vms.waiting import eventually

pytestmark = pytest.mark.vm

Spec = Callable[..., dict[str, Any]]


@pytest.fixture
def own(daemon: Daemon) -> Iterator[str]:
    """A name; what bears it is removed at the end."""
    yield "own"
    for name in daemon.names():
        if name.startswith("own"):
            daemon.client.instances.handle(name).remove(force=True)


# -- run ----------------------------------------------------------------------------------------------


def test_run_prints_the_guests_answer_and_takes_its_status(inn: Inn, daemon: Daemon, shared_vm: str) -> None:
    answer = inn("run", "tiny", "--", "uname", "-a").ok()
    assert answer.out.startswith("Linux ") and "x86_64" in answer.out and answer.err == ""
    assert inn("run", "tiny", "--", "sh", "-c", "echo oops >&2; exit 42").status == 42
    assert daemon.names() == [shared_vm], "such a VM is gone afterwards"


def test_run_streams_standard_input(inn: Inn) -> None:
    data = b"x" * 100_000
    answer = inn("run", "tiny", "--", "sha256sum", stdin=data).ok()
    assert answer.out.split()[0] == hashlib.sha256(data).hexdigest()


def test_run_detached_keeps_the_vm_and_prints_its_name(inn: Inn, daemon: Daemon, own: str) -> None:
    assert inn("run", "tiny", "-d", "--name", own, "--cpus", "2", "--memory", "192MiB").ok().out == "own\n"
    vm = daemon.show(own)
    assert vm["state"] == "running" and vm["ready"] and vm["cpus"] == 2 and vm["memory"] == 192 << 20
    assert inn("exec", own, "--", "nproc").ok().out == "2\n"
    assert inn("exec", own, "--", "hostname").ok().out == "own\n"
    assert vm["status"]["times_ms"]["ready"] > 0


def test_run_rm_removes_the_vm_when_it_ends(inn: Inn, daemon: Daemon, own: str) -> None:
    inn("run", "tiny", "-d", "--rm", "--name", own).ok()
    inn("stop", own)
    eventually(lambda: own not in daemon.names(), "it goes by itself", 20.0)


def test_run_with_json(inn: Inn, own: str) -> None:
    answer = inn("run", "tiny", "--json", "--name", own, "--", "echo", "hi").ok().json
    assert answer == {"name": own, "exit_status": 0, "stdout": "hi\n", "stderr": "", "removed": False}


def test_run_at_a_terminal_attaches_to_the_console(inn: Inn, daemon: Daemon, own: str) -> None:
    with Terminal(inn, ["run", "tiny", "--name", own]) as terminal:
        terminal.expect(b"attached to own")
        terminal.expect(b"#", 30.0)
        terminal.type(b"echo $((40 + 2))\r")
        terminal.expect(b"42")
        terminal.type(CTRL_BRACKET)
        assert terminal.left() == 0
    assert daemon.status(own)["state"] == "running", "it runs on"


# -- create, start, stop, restart, pause, resume, kill, rm -----------------------------------------------


def test_create_start_stop_start_restart_rm(inn: Inn, daemon: Daemon, own: str) -> None:
    assert inn("create", "tiny", "--name", own).ok().out == "own\n"
    vm = daemon.show(own)
    assert (vm["state"], vm["pid"], vm["ready"]) == ("stopped", 0, False)
    inn("start", own, "--wait", "ready").ok()
    first = daemon.show(own)
    assert first["ready"] and first["pid"] in daemon.qemus().values()
    assert inn("start", own).ok().out == "own\n", "one that runs stays as it is"
    assert daemon.show(own)["pid"] == first["pid"]
    inn("restart", own, "--wait", "ready").ok()
    second = daemon.show(own)
    assert second["pid"] != first["pid"] and second["status"]["epoch"] == 2
    inn("stop", own).ok()
    stopped = daemon.show(own)
    assert stopped["status"]["ended"]["reason"] == "stopped"
    assert (stopped["state"], stopped["pid"], stopped["addresses"]) == ("stopped", 0, [])
    inn("stop", own).ok()  # no error
    inn("rm", own).ok()
    inn("show", own).failed(3, "own")
    assert not Path(stopped["paths"]["state"]).exists()


def test_stop_by_the_power_button_where_there_is_no_agent(
    daemon: Daemon, inn: Inn, own: str, small: Spec
) -> None:
    daemon.client.instances.create(small("button"), name=own, start=True, wait="running")
    _booted(daemon, own)
    inn("stop", own).ok()
    assert daemon.status(own)["ended"]["reason"] == "stopped"


def test_a_guest_that_does_not_stop_in_time_runs_on(daemon: Daemon, inn: Inn, own: str, small: Spec) -> None:
    daemon.client.instances.create(small("halt"), name=own, start=True, wait="running")
    _booted(daemon, own)
    inn("stop", own, "--timeout", "300ms").failed(1, "did not shut down within 300 ms", "inn kill own")
    assert daemon.status(own)["state"] == "running"
    inn("rm", own).failed(4, "running", "--force")
    inn("kill", own).ok()
    assert daemon.status(own)["ended"]["reason"] == "killed"
    inn("kill", own).ok()


def test_pause_and_resume(daemon: Daemon, inn: Inn, own: str, small: Spec) -> None:
    daemon.client.instances.create(small("halt"), name=own, start=True, wait="running")
    pid = daemon.show(own)["pid"]
    inn("pause", own).ok()
    assert daemon.status(own)["state"] == "paused"
    inn("start", own).failed(4, "paused", "inn resume")
    inn("resume", own).ok()
    assert daemon.status(own)["state"] == "running" and daemon.show(own)["pid"] == pid
    inn("kill", own).ok()
    inn("pause", own).failed(4, "not running")


def test_several_at_once(daemon: Daemon, inn: Inn, own: str, small: Spec) -> None:
    names = ["own-a", "own-b", "own-c"]
    for name in names:
        daemon.client.instances.create(small(), name=name, wait="running")
    assert inn("start", *names).ok().out.split() == names
    answer = inn("kill", "own-a", "no-such", "own-c")
    assert answer.status == 3 and answer.out.split() == ["own-a", "own-c"]
    assert inn("list", "-q", "--state", "running").ok().out.split().count("own-b") == 1
    inn("rm", "-f", *names).ok()


def _booted(daemon: Daemon, name: str) -> None:
    log = Path(daemon.show(name)["paths"]["console_log"])
    eventually(lambda: GREETING.encode() in log.read_bytes(), "it has booted", 20.0)


# -- list, show, wait -----------------------------------------------------------------------------------


def test_list_shows_the_accelerator_of_each(inn: Inn, daemon: Daemon, shared_vm: str) -> None:
    rows = inn("list").ok().out.splitlines()
    assert rows[0].split()[:4] == ["NAME", "STATE", "READY", "ACCEL"]
    row = next(row.split() for row in rows if row.startswith("shared "))
    verdict = daemon.client.host.show()["facts"]["kvm"]
    assert row[1:4] == ["running", "yes", "kvm" if verdict == "hardware" else "tcg"]
    listed = inn("list", "--json").ok().json
    keys = {"name", "uid", "state", "ready", "accelerator", "pid", "host", "image", "cpus", "memory",
            "addresses", "created_at", "started_at", "note"}  # fmt: skip
    assert all(set(one) >= keys for one in listed)


def test_show_in_all_its_forms(inn: Inn, shared_vm: str) -> None:
    text = inn("show", shared_vm).ok().out
    for word in ("shared", "running", "tiny", "pc-q35-"):
        assert word in text
    data = inn("show", shared_vm, "--json").ok().json
    assert data["spec"]["image"] == "tiny" and data["status"]["pid"] == data["pid"]
    assert Path(data["paths"]["state"]).is_dir() and Path(data["paths"]["run"]).is_dir()
    assert data["spec"]["machine"]["type"].startswith("pc-q35-"), "the machine type is pinned"


def test_the_yaml_of_show_goes_through_apply(inn: Inn, daemon: Daemon, own: str, tmp_path: Path) -> None:
    inn(
        "create", "tiny", "--name", own, "--cpus", "2", "--disk", "64MiB,bus=scsi,name=data",
        "--network", "user,model=e1000", "--forward", "40222:22", "--label", "team=a b",
        "--restart-policy", "always",
    ).ok()  # fmt: skip
    text = inn("show", own, "--yaml").ok().stdout
    file = tmp_path / "own.yaml"
    file.write_bytes(text)
    assert inn("apply", "-f", file).ok().out == "own: unchanged\n"
    assert inn("diff", "-f", file, "--exit-code").status == 0
    inn("rm", own).ok()
    assert inn("apply", "-f", file).ok().out == "own: created\n"
    assert inn("show", own, "--yaml").ok().stdout == text
    changed = file.read_text().replace("count: 2", "count: 1")
    assert inn("apply", "-f", "-", stdin=changed.encode()).ok().out.startswith("own: changed cpu.count")
    assert daemon.show(own)["spec"]["cpu"]["count"] == 1


def test_the_argv_of_show_really_starts_the_vm(inn: Inn, daemon: Daemon, own: str, small: Spec) -> None:
    daemon.client.instances.create(small("shutdown"), name=own, wait="running")
    line = inn("show", own, "--argv").ok().out
    place = Path(daemon.show(own)["paths"]["run"])
    place.mkdir(mode=0o700)
    try:
        done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=30, check=False)
    finally:
        for left in place.iterdir():
            left.unlink()
        place.rmdir()
    assert done.returncode == 0, done.stderr
    assert GREETING in Path(daemon.show(own)["paths"]["console_log"]).read_text()


def test_wait(inn: Inn, daemon: Daemon, own: str, small: Spec) -> None:
    daemon.client.instances.create(small("halt"), name=own, wait="running")
    inn("wait", own).failed(4, "not running")
    inn("wait", own, "--for", "stopped").ok()
    daemon.client.instances.handle(own).start()
    inn("wait", own, "--for", "ready").ok()
    inn("wait", own, "--for", "stopped", "--timeout", "200ms").failed(1, "0.2 s", "running")
    waiting = inn.popen("wait", own, "--for", "stopped", stdin=subprocess.DEVNULL)
    daemon.client.instances.handle(own).kill()
    assert waiting.wait(10) == 0


def test_set_changes_what_may_change(inn: Inn, daemon: Daemon, own: str, small: Spec) -> None:
    daemon.client.instances.create(small(), name=own, wait="running")
    inn("set", own, "restart_policy=always", "labels.team=blue").ok()
    spec = daemon.show(own)["spec"]
    assert spec["restart_policy"] == "always" and spec["labels"] == {"team": "blue"}


# -- what fails leaves nothing ----------------------------------------------------------------------------


def test_a_run_that_fails_leaves_nothing(inn: Inn, daemon: Daemon) -> None:
    before, files = daemon.names(), traces.instance_files(daemon.paths)
    answer = inn("run", "tiny", "--cpu-model", "no-such-cpu", "-d", "--name", "own")
    answer.failed(4, "has no CPU model no-such-cpu")
    answer = inn("run", "tiny", "-d", "--name", "own", "--timeout", "100ms")
    assert answer.status == 1
    eventually(lambda: daemon.names() == before, "it is gone", 15.0)
    assert traces.instance_files(daemon.paths) == files


def test_a_kernel_that_panics_is_told_with_its_last_words(inn: Inn, daemon: Daemon, own: str) -> None:
    answer = inn("run", "tiny", "-d", "--name", own, "--append", "rdinit=/nowhere panic=0")
    answer.failed(1, "panic", "unable to mount root fs")


def test_a_guest_that_never_becomes_ready_is_told_with_its_last_words(
    inn: Inn, daemon: Daemon, own: str, boot_disk: Path
) -> None:
    answer = inn("run", boot_disk, "-d", "--agent", "--memory", "16MiB", "--name", own, "--timeout", "2s")
    answer.failed(1, GREETING)


def test_the_events_of_the_sdk_tell_of_changes(daemon: Daemon, own: str, small: Spec) -> None:
    import innkeeper

    client = innkeeper.connect(str(daemon.state), autostart=False)
    known = client.transport.json("GET", "/v1/instances")["revision"]
    client.instances.create(small(), name=own, start=True, wait="running")
    with contextlib.closing(client.events(since=known + 1, prefix="status/own")) as events:  # type: ignore[type-var]
        states = []
        for event in events:
            states.append((event.json().get("value") or {}).get("state"))
            if states[-1] == "running":
                break
    assert states.index("creating") < states.index("starting") < states.index("running")
    assert client.instances.get(own).state == "running"
