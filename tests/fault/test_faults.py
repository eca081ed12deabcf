"""Things that break: daemons killed at random, QEMU that hangs or dies, interrupted commands."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest

from innkeeper.client.client import Client
from innkeeper.errors import InnkeeperError, NotFound
from vms import traces
from vms.bootables import GREETING
from vms.daemon import Daemon, stopped_process
from vms.waiting import eventually

pytestmark = pytest.mark.vm

Spec = Callable[..., dict[str, Any]]
Fresh = Callable[..., Daemon]


# -- the daemon dies ----------------------------------------------------------------------------------


def test_vms_survive_sigterm_and_sigkill_of_the_daemon(fresh: Fresh, small: Spec) -> None:
    daemon = fresh()
    names = [f"vm{number}" for number in range(5)]
    for name in names:
        daemon.client.instances.create(small(), name=name, start=True, wait="running")
    before = daemon.qemus()
    assert len(before) == len(names)
    assert daemon.stop() == 0
    assert daemon.qemus() == before, "SIGTERM ended a VM"
    daemon.start()
    took_s = daemon.restart()
    listed = {vm["name"]: vm for vm in daemon.client.instances.list_data()}
    print(f"adopted {len(names)} VMs; the API answered {took_s * 1000:.0f} ms after the start of the daemon")
    assert took_s < 5.0
    assert {name: vm["state"] for name, vm in listed.items()} == dict.fromkeys(names, "running")
    assert {vm["uid"]: vm["pid"] for vm in listed.values()} == daemon.qemus() == before


def test_what_was_acknowledged_survives_a_kill(fresh: Fresh, small: Spec) -> None:
    daemon = fresh()
    daemon.client.instances.create(small(), name="made", wait="running")
    daemon.restart()
    assert daemon.status("made")["state"] == "stopped"
    daemon.client.instances.handle("made").start()
    daemon.restart()
    assert daemon.status("made")["state"] == "running"
    daemon.client.instances.handle("made").pause()
    daemon.restart()
    assert daemon.status("made")["state"] == "paused"
    daemon.client.instances.handle("made").kill()
    daemon.restart()
    assert daemon.status("made")["ended"]["reason"] == "killed"
    daemon.client.instances.handle("made").remove()
    daemon.restart()
    assert daemon.names() == []


def test_a_vm_that_ended_while_no_daemon_ran(fresh: Fresh, small: Spec) -> None:
    daemon = fresh()
    for name, policy in (("once", "never"), ("again", "on-failure")):
        daemon.client.instances.create(small(restart_policy=policy), name=name, start=True, wait="running")
    daemon.kill()
    for pid in daemon.qemus().values():
        os.kill(pid, signal.SIGKILL)
    daemon.start()
    ended = daemon.watch("once", lambda vm: vm["state"] == "stopped", "is known to have ended")
    assert ended["status"]["ended"]["reason"] == "ended-unseen"
    daemon.watch("again", lambda vm: vm["state"] == "running", "was started again by its policy")


VERBS = ("create", "create", "run", "start", "stop", "kill", "pause", "resume", "restart", "rm")


class Workload:
    """A few clients that use a few VMs at random; what they are told is not of interest, only what is
    there afterwards. Same seed, same wishes."""

    def __init__(self, daemon: Daemon, spec: dict[str, Any], seed: int) -> None:
        self._daemon, self._spec = daemon, spec
        self._done = threading.Event()
        self.bugs: list[str] = []
        self.answered = 0
        self._threads = [
            threading.Thread(target=self._work, args=(random.Random(seed + number),)) for number in range(3)
        ]

    def __enter__(self) -> Workload:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a verb got no answer for a minute"

    def _work(self, choose: random.Random) -> None:
        while not self._done.is_set():
            name = f"vm{choose.randrange(4)}"
            try:
                self._one(self._daemon.client, name, choose)
                self.answered += 1
            except InnkeeperError as error:
                if error.code in ("bug", "error"):
                    self.bugs.append(str(error))
                if error.code == "daemon_unreachable":
                    self._done.wait(0.02)
            except Exception as error:
                self.bugs.append(repr(error))

    def _one(self, client: Client, name: str, choose: random.Random) -> None:
        instance = client.instances.handle(name)
        verb = choose.choice(
            ["create", "create", "run", "start", "stop", "kill", "pause", "resume", "restart", "rm"]
        )
        match verb:
            case "create" | "run":
                client.instances.create(self._spec, name=name, start=verb == "run", wait="running")
            case "stop":
                instance.stop(timeout_s=0.5)
            case "restart":
                instance.restart(timeout_s=0.5)
            case "rm":
                instance.remove(force=True)
            case _:
                getattr(instance, verb)()


@pytest.mark.slow
def test_killed_at_random_moments_of_a_mixed_workload(fresh: Fresh, small: Spec) -> None:
    daemon = fresh()
    choose = random.Random(20)
    begun = time.monotonic()
    kills = 0
    with Workload(daemon, small("button"), seed=7) as load:
        while time.monotonic() - begun < 18:
            time.sleep(choose.uniform(0.05, 1.5))  # the moment of the fault, not a wait for anything
            daemon.restart()
            kills += 1
            assert len(daemon.qemu_processes()) == len(daemon.qemus()), "a second QEMU for one instance"
    print(f"{kills} kills, {load.answered} verbs answered")
    assert load.bugs == []
    assert load.answered > 20
    for name in daemon.names():
        daemon.watch(name, _at_rest, "comes to rest", 30.0)
    shown = [daemon.show(name) for name in daemon.names()]
    running = {vm["uid"]: vm["pid"] for vm in shown if vm["state"] in ("running", "paused")}
    assert daemon.qemus() == running
    files = {path.name for path in daemon.paths.instances.iterdir()}
    assert files == {vm["uid"] for vm in shown}


def _at_rest(vm: dict[str, Any]) -> bool:
    failure = vm["status"]["failure"]
    answered = max(vm["status"]["generation"], failure["generation"] if failure else 0)
    return bool(answered >= vm["wanted"]["generation"])


# -- QEMU and guests --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_hung_vm_shows_as_hung_holds_up_nobody_and_can_be_killed(fresh: Fresh, small: Spec) -> None:
    daemon = fresh()
    client = daemon.client
    client.instances.create(small(), name="hung", start=True, wait="running")
    client.instances.create(small(), name="fine", start=True, wait="running")
    pid = daemon.show("hung")["pid"]
    with stopped_process(pid), _in_background(lambda: daemon.client.instances.handle("hung").pause()):
        begun = time.monotonic()
        client.instances.handle("fine").pause()
        client.instances.handle("fine").resume()
        client.instances.create(small(), name="new", start=True, wait="running")
        client.instances.list_data()
        took_s = time.monotonic() - begun
        print(f"four verbs beside a hung VM took {took_s:.2f} s")
        assert took_s < 4.0
        daemon.watch("hung", lambda vm: vm["state"] == "hung", "shows as hung", 40.0)
        assert "does not answer" in daemon.status("hung")["note"]
        begun = time.monotonic()
        client.instances.handle("hung").kill()
        assert time.monotonic() - begun < 5.0
    assert daemon.status("hung")["state"] == "stopped"


@pytest.mark.slow
def test_a_vm_that_hung_at_the_daemons_start_recovers(fresh: Fresh, small: Spec) -> None:
    daemon = fresh()
    daemon.client.instances.create(small(), name="hung", start=True, wait="running")
    before = daemon.show("hung")
    with stopped_process(before["pid"]):
        took_s = daemon.restart()
        assert took_s < 5.0, "one hung VM must not hold up the start"
        assert daemon.status("hung")["state"] == "hung"
    after = daemon.watch("hung", lambda vm: vm["state"] == "running", "answers again", 40.0)
    assert after["pid"] == before["pid"]


@pytest.mark.daemon_errors("QEMU was killed")
def test_a_qemu_that_is_killed_is_told_and_restarted_by_policy(fresh: Fresh, small: Spec) -> None:
    daemon = fresh()
    for policy in ("never", "on-failure", "always"):
        spec = small(restart_policy=policy)
        daemon.client.instances.create(spec, name=policy, start=True, wait="running")
    before = {name: daemon.show(name)["pid"] for name in daemon.names()}
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    gone = daemon.watch("never", lambda vm: vm["state"] == "stopped", "is stopped")
    assert gone["status"]["ended"]["reason"] == "qemu-died"
    assert "QEMU died" in gone["note"] and "signal 9" in gone["note"]
    for name in ("on-failure", "always"):
        again = daemon.watch(
            name, lambda vm: vm["state"] == "running" and vm["status"]["restarts"], "runs again"
        )
        assert again["pid"] != before[name]


def test_a_guest_that_shuts_down_is_restarted_only_by_always(fresh: Fresh, small: Spec) -> None:
    daemon = fresh()
    for policy in ("never", "on-failure", "always"):
        spec = small("shutdown", restart_policy=policy)
        daemon.client.instances.create(spec, name=policy, start=True, wait="none")
    for name in ("never", "on-failure"):
        ended = daemon.watch(name, lambda vm: vm["state"] == "stopped" and vm["status"]["ended"], "has ended")
        assert ended["status"]["ended"]["reason"] == "guest-shutdown"
    daemon.watch("always", lambda vm: vm["status"]["restarts"] >= 3, "was started again and again")
    # The pauses grow: a VM that ends at once does not keep the host busy.
    daemon.client.instances.handle("always").kill()
    assert daemon.status("always")["state"] == "stopped"


@contextlib.contextmanager
def _in_background(work: Callable[[], object]) -> Iterator[None]:
    """A verb that may take long, or fail, beside what is tested."""

    def quietly() -> None:
        with contextlib.suppress(InnkeeperError):
            work()

    thread = threading.Thread(target=quietly)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()


# -- two daemons, interrupted commands ------------------------------------------------------------------


def test_a_second_daemon_on_one_state_directory_is_refused(fresh: Fresh) -> None:
    daemon = fresh()
    second = daemon.inn("serve")
    second.failed(4, "in use", str(daemon.pid))
    assert daemon.client.version()["pid"] == daemon.pid, "the first one is not disturbed"


@pytest.mark.parametrize("moment", ["asked", "creating", "running", "later"])
def test_ctrl_c_during_run_takes_the_vm_back(fresh_shared: Daemon, small: Spec, moment: str) -> None:
    """`inn run` of a guest without agent waits for ever; ctrl-C comes at several moments."""
    daemon = fresh_shared
    disk = small()["disks"][0]["copy_of"]
    words = ["run", disk, "--memory", "16MiB", "--agent", "--network", "none", "--name", "interrupted"]
    process = daemon.inn.popen(*words, stdout=PIPE, stderr=PIPE, stdin=DEVNULL)
    eventually(lambda: _reached(daemon, moment), f"the run has come to {moment}", 20.0, every_s=0.002)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert b"Traceback" not in err and b"left behind" not in err and out == b""
    assert b"removed interrupted again" in err
    _nothing_left(daemon)


def _reached(daemon: Daemon, moment: str) -> bool:
    """As far as can be seen from outside; `asked` is as soon as the daemon knows of it."""
    try:
        vm = daemon.show("interrupted")
    except NotFound:
        return False
    if moment == "asked":
        return True
    if moment == "creating":
        return bool(vm["state"] != "pending")
    if moment == "running":
        return bool(vm["state"] == "running")
    return GREETING in Path(vm["paths"]["console_log"]).read_text() if vm["pid"] else False


@pytest.mark.parametrize("after_s", [0.01, 0.03, 0.06, 0.1, 0.15])
def test_ctrl_c_at_the_start_of_the_command_leaves_nothing(
    fresh_shared: Daemon, small: Spec, after_s: float
) -> None:
    """While the interpreter starts a signal is not ours to handle, so only what is left counts here."""
    daemon = fresh_shared
    disk = small()["disks"][0]["copy_of"]
    words = ["run", disk, "--memory", "16MiB", "--agent", "--network", "none", "--name", "interrupted"]
    process = daemon.inn.popen(*words, stdout=PIPE, stderr=PIPE, stdin=DEVNULL)
    time.sleep(after_s)  # the moment of the fault, not a wait for anything
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGINT, 1)  # 1: the interpreter gave up
    _nothing_left(daemon)


def _nothing_left(daemon: Daemon) -> None:
    assert daemon.names() == []
    eventually(lambda: not traces.instance_files(daemon.paths), "nothing of it is left", 10.0)
    assert daemon.qemus() == {}


@pytest.fixture(scope="module")
def fresh_shared(bare_state: Path) -> Iterator[Daemon]:
    from vms import templates
    from vms.daemon import short_directory

    state = short_directory()
    templates.copy_state(bare_state, state)
    daemon = Daemon(state).start()
    try:
        yield daemon
    finally:
        daemon.close()


def test_ctrl_c_during_a_command_ends_it_and_removes_the_vm(fresh: Fresh) -> None:
    daemon = fresh(images=True)
    process = daemon.inn.popen(
        "run", "tiny", "--", "sh", "-c", "echo begun; sleep 1000",
        stdout=PIPE, stderr=PIPE, stdin=DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Traceback" not in err
    assert daemon.names() == []


def test_a_verb_whose_client_goes_away_is_still_done(fresh: Fresh, small: Spec) -> None:
    daemon = fresh()
    daemon.client.instances.create(small(), name="vm", wait="running")
    process = daemon.inn.popen("start", "vm", stdout=DEVNULL, stderr=DEVNULL)
    # As soon as the wish is in the store, nobody has to wait for it.
    daemon.watch("vm", lambda vm: vm["wanted"]["power"] == "on", "is to be started")
    process.kill()
    process.wait()
    daemon.watch("vm", lambda vm: vm["state"] == "running", "was started")
    with pytest.raises(NotFound):
        daemon.show("other")
