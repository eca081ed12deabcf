"""The daemon is killed at every checkpoint of every verb; the next one finishes or undoes the verb.

A verb's record is in the store before anything happens, so after a crash its instance becomes what
was asked for - or, where its start must fail, goes away without a trace.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from innkeeper.agent.context import CHECKPOINTS
from innkeeper.client.client import Client
from innkeeper.errors import DaemonUnreachable, InnkeeperError, NotFound
from vms import templates, traces
from vms.bootables import GREETING
from vms.daemon import Daemon, short_directory
from vms.waiting import eventually

pytestmark = pytest.mark.vm

Standing = Literal["absent", "stopped", "running", "paused"]
Spec = dict[str, Any]
NAME = "victim"
# QEMU, and passt where it is installed.
PROCESSES_OF_ONE = 1 + bool(shutil.which("passt"))


@dataclass(frozen=True)
class Verb:
    """From one standing to another, by a request that never gets its answer."""

    name: str
    before: Standing
    act: Callable[[Client, Spec], object]
    after: Standing
    points: tuple[str, ...]


def _broken(spec: Spec) -> Spec:
    return spec | {"boot": {"kernel": "/nowhere"}}


VERBS = (
    Verb(
        "create", "absent", lambda client, spec: client.instances.create(spec, name=NAME, wait="running"),
        "stopped", ("create.begun", "create.directory", "create.disk", "create.done"),
    ),
    Verb(
        "run", "absent",
        lambda client, spec: client.instances.create(spec, name=NAME, start=True, wait="running"),
        "running", ("create.disk", "create.done", "start.begun", "start.launched", "start.published"),
    ),
    Verb(
        "run-that-fails", "absent",
        lambda client, spec: client.instances.create(_broken(spec), name=NAME, start=True, wait="running"),
        "absent",
        ("create.begun", "start.begun", "discard.begun", "discard.done", "forget.begun", "forget.done"),
    ),
    Verb(
        "start", "stopped", lambda client, spec: client.instances.handle(NAME).start(),
        "running", ("start.begun", "start.launched", "start.published"),
    ),
    Verb(
        "stop", "running", lambda client, spec: client.instances.handle(NAME).stop(timeout_s=30),
        "stopped", ("stop.begun", "stop.asked", "stop.ended"),
    ),
    Verb(
        "restart", "running", lambda client, spec: client.instances.handle(NAME).restart(timeout_s=30),
        "running", ("stop.begun", "stop.asked", "stop.ended", "start.begun", "start.launched"),
    ),
    Verb(
        "kill", "running", lambda client, spec: client.instances.handle(NAME).kill(),
        "stopped", ("kill.begun", "kill.ended"),
    ),
    Verb(
        "pause", "running", lambda client, spec: client.instances.handle(NAME).pause(),
        "paused", ("pause.done",),
    ),
    Verb(
        "resume", "paused", lambda client, spec: client.instances.handle(NAME).resume(),
        "running", ("resume.done",),
    ),
    Verb(
        "change", "running",
        lambda client, spec: client.instances.handle(NAME).update({"cpu": {"count": 3}}),
        "running", ("change.begun", "change.plugged", "change.fitted", "change.done"),
    ),
    Verb(
        "rm", "stopped", lambda client, spec: client.instances.handle(NAME).remove(),
        "absent", ("discard.begun", "discard.done", "forget.begun", "forget.done"),
    ),
    Verb(
        "rm-force", "running", lambda client, spec: client.instances.handle(NAME).remove(force=True),
        "absent", ("kill.begun", "kill.ended", "discard.begun", "discard.done", "forget.begun"),
    ),
)  # fmt: skip
LAST = "forget.done"  # nothing is left to do then
CASES = [(verb, point) for verb in VERBS for point in verb.points]


# A fork passes these, some only where the parent was forked before (test_fork_crash); and what is done with
# snapshots the others (test_snapshot_crash).
FORK_POINTS = tuple(point for point in CHECKPOINTS if point.startswith(("fork.", "copy.", "promote.")))
TEMPLATE_POINTS = {  # test_template_crash
    point for point in CHECKPOINTS if point.startswith(("template.", "wake.", "spare."))
}
# These take a guest with an agent: tests/integration/test_cpu_real.py, test_memory_real.py.
AGENT_POINTS = {"change.parked", "change.emptied", "change.unplugged"}
SNAPSHOT_POINTS = {
    point for point in CHECKPOINTS if point.startswith(("snapshot.", "unsnapshot.", "revert."))
}


def test_every_checkpoint_is_crashed_at() -> None:
    elsewhere = {*FORK_POINTS, *TEMPLATE_POINTS, *SNAPSHOT_POINTS, *AGENT_POINTS}
    assert {point for _, point in CASES} | elsewhere == set(CHECKPOINTS)


@pytest.fixture(scope="module")
def lasting(bare_state: Path) -> Iterator[Daemon]:
    """One state directory for all crashes: what one leaves would disturb the next."""
    state = short_directory()
    templates.copy_state(bare_state, state)
    daemon = Daemon(state).start()
    try:
        yield daemon
    finally:
        daemon.close()


@pytest.mark.parametrize(("verb", "point"), CASES, ids=[f"{verb.name}@{point}" for verb, point in CASES])
def test_killed_at(lasting: Daemon, small: Callable[..., Spec], verb: Verb, point: str) -> None:
    spec = small("button", networks=[{"mode": "user"}], restart_policy="never")
    spec["disks"].append({"name": "data", "size": "1MiB"})
    before = _prepare(lasting, verb.before, spec)
    lasting.kill()
    lasting.start(crash_at=point)
    with _unanswered(point):
        verb.act(lasting.client, spec)
    assert lasting.wait_dead() == -9
    lasting.start()
    after = _settled(lasting, verb.after)
    _check(lasting, verb, before, after)
    if after is not None:
        _still_works(lasting)
    assert not traces.instance_files(lasting.paths)


@contextlib.contextmanager
def _unanswered(point: str) -> Iterator[None]:
    """The verb gets no answer - but where all is in the store already, it may be on its way."""
    try:
        yield
    except DaemonUnreachable:
        return
    except InnkeeperError:
        if point != LAST:
            raise
    else:
        assert point == LAST, "the verb was answered"


def _prepare(daemon: Daemon, standing: Standing, spec: Spec) -> dict[str, Any] | None:
    if standing == "absent":
        return None
    running = standing != "stopped"
    wait = "running"
    instance = daemon.client.instances.create(spec, name=NAME, start=running, wait=wait)
    if running:
        _wait_booted(daemon)
    if standing == "paused":
        instance.pause()
    return daemon.show(NAME)


def _wait_booted(daemon: Daemon, times: int = 1) -> None:
    log = Path(daemon.show(NAME)["paths"]["console_log"])
    eventually(lambda: log.read_bytes().count(GREETING.encode()) >= times, "the guest has booted", 20.0)


def _settled(daemon: Daemon, standing: Standing) -> dict[str, Any] | None:
    if standing == "absent":
        eventually(lambda: NAME not in daemon.names(), "the instance goes away", 20.0)
        return None

    def reached(vm: dict[str, Any]) -> bool:
        return bool(vm["state"] == standing and vm["status"]["generation"] == vm["wanted"]["generation"])

    return daemon.watch(NAME, reached, f"settles as {standing}", 40.0)


def _check(daemon: Daemon, verb: Verb, before: dict[str, Any] | None, after: dict[str, Any] | None) -> None:
    alive = verb.after in ("running", "paused")
    eventually(
        lambda: len(daemon.helpers()) == (PROCESSES_OF_ONE if alive else 0),
        f"{PROCESSES_OF_ONE if alive else 0} processes besides the daemon, no second QEMU",
        5.0,
    )
    if after is None:
        assert not traces.instance_files(daemon.paths)
        return
    assert after["status"]["failure"] is None
    assert Path(after["paths"]["state"]).is_dir()
    assert {path.name for path in Path(after["paths"]["state"]).glob("*.qcow2")} == {
        "root.qcow2",
        "data.qcow2",
    }
    if alive:
        assert daemon.qemus() == {after["uid"]: after["pid"]}
        assert after["status"]["epoch"] == after["wanted"]["epoch"]
    if before is not None and verb.name in ("pause", "resume"):
        assert after["pid"] == before["pid"], "the same QEMU runs on"
    if verb.name == "change":
        assert before and after["pid"] == before["pid"] and after["status"]["cpus"] == 3
    if verb.name in ("stop", "kill"):
        assert after["status"]["ended"]["reason"] in ("stopped", "killed", "ended-unseen")


def _still_works(daemon: Daemon) -> None:
    """The verbs after it find nothing in their way."""
    instance = daemon.client.instances.get(NAME)
    if instance.state == "paused":
        instance.resume()
    assert instance.start().state == "running"
    instance.remove(force=True)
    assert daemon.names() == []


@pytest.mark.parametrize("point", FORK_POINTS)
def test_killed_in_a_fork(lasting: Daemon, small: Callable[..., Spec], point: str) -> None:
    """The parent runs on whatever happens; each copy is there and runs, or there is no trace of it."""
    spec = small("button", networks=[{"mode": "user"}], memory={"size": "32MiB"})
    _prepare(lasting, "running", spec)
    lasting.kill()
    lasting.start(crash_at=point)
    try:
        for copy in ("copy-1", "copy-2"):
            with contextlib.suppress(InnkeeperError):
                lasting.client.instances.handle(NAME).fork(name=copy, wait="running")
        assert lasting.wait_dead() == -9
        lasting.start()
        eventually(lambda: all(map(_answered, _all(lasting))), "parent and copies settle", 30.0, every_s=0.05)
        lasting.watch(NAME, lambda vm: vm["state"] == "running", "the parent runs on", 20.0)
        assert lasting.status(NAME)["failure"] is None
        running = sorted(vm["uid"] for vm in _all(lasting) if vm["state"] == "running")
        # A parent that was forked moves to RAM of its own in the background: two QEMUs for a moment.
        eventually(
            lambda: sorted(uid for uid, _ in lasting.qemu_processes()) == running, "one QEMU for each", 20.0
        )
        eventually(lambda: len(lasting.helpers()) == len(running) * PROCESSES_OF_ONE, "no process too many")
        assert {path.name for path in lasting.paths.instances.iterdir()} == {
            vm["uid"] for vm in _all(lasting)
        }
    finally:
        if not lasting.alive:
            lasting.process = None
            lasting.start()
        for name in lasting.names():
            lasting.client.instances.handle(name).remove(force=True)
    assert not traces.instance_files(lasting.paths)


def _all(daemon: Daemon) -> list[Spec]:
    """As they are; one that goes away meanwhile is left out."""
    found = []
    for name in daemon.names():
        with contextlib.suppress(NotFound):
            found.append(daemon.show(name))
    return found


def _answered(vm: Spec) -> bool:
    failure = vm["status"]["failure"] or {"generation": 0}
    return bool(max(vm["status"]["generation"], failure["generation"]) >= vm["wanted"]["generation"])
