"""The ladder of fixtures for tests with real daemons and guests; ask for the weakest rung.

    tiny_image, debian_image      directories of images, built once and kept between runs
    template_state                a state directory that knows the image `tiny`
    daemon                        a daemon shared by all tests that do not damage it
    host                          a daemon of one module's own, which may kill it; VMs come and go
    fresh                         makes daemons of a test's own; each must leave nothing
    inn                           the command line of `daemon`
    created, started, ready       an instance of `tiny` of the test's own, on `daemon`
    shared_vm                     one that is ready, for tests that leave it as it is
    boot_disk                     a disk whose guest is 20 bytes of code (see vms.bootables)

After every test of integration/ and fault/ `ambient` looks for what it left.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("vms")  # before its modules are imported

from vms import bootables, templates, traces  # noqa: E402
from vms.cli import Inn, User  # noqa: E402
from vms.daemon import LIVING, Daemon, short_directory  # noqa: E402
from vms.waiting import eventually  # noqa: E402

AMBIENT_DIRECTORIES = {"integration", "fault"}
SETTLE_S = 2.0
FreshDaemon = Callable[..., Daemon]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "daemon_errors(why): the daemon is meant to log errors in this test")
    # What an example takes is the host's load, not the code's: a deadline of 200 ms fails on a busy one.
    settings.register_profile("innkeeper", deadline=None)
    settings.load_profile("innkeeper")


@pytest.fixture(scope="session")
def tiny_image() -> Path:
    return templates.built_image("tiny")


@pytest.fixture(scope="session")
def debian_image() -> Path:
    return templates.built_image("debian")


@pytest.fixture(scope="session")
def template_state(tiny_image: Path) -> Iterator[Path]:
    """Used by one daemon already, so that what it finds out about the host is known to those of the tests."""
    daemon = Daemon(short_directory())
    try:
        templates.register(daemon.state, "tiny", tiny_image)
        daemon.start()
        assert daemon.stop() == 0
        yield daemon.state
    finally:
        daemon.close()


@pytest.fixture(scope="session")
def bare_state() -> Iterator[Path]:
    """A state directory that knows its host and has no images, for tests that boot none."""
    daemon = Daemon(short_directory())
    try:
        daemon.start()
        assert daemon.stop() == 0
        yield daemon.state
    finally:
        daemon.close()


@pytest.fixture(scope="module")
def host(template_state: Path) -> Iterator[Daemon]:
    """What is left is looked for by its tests themselves (vms.forks), more closely than `ambient` does."""
    state = short_directory()
    templates.copy_state(template_state, state)
    daemon = Daemon(state).start()
    daemon.checked = True
    try:
        yield daemon
    finally:
        print(f"the daemon's log:\n{daemon.tail()}")  # shown when a test fails
        daemon.close()


@pytest.fixture(scope="session")
def daemon(template_state: Path) -> Iterator[Daemon]:
    state = short_directory()
    templates.copy_state(template_state, state)
    daemon = Daemon(state).start()
    try:
        yield daemon
    finally:
        daemon.close()


@pytest.fixture
def fresh(request: pytest.FixtureRequest) -> Iterator[FreshDaemon]:
    """`fresh()` is a daemon of the test's own that runs; `images=True`: it knows `tiny`."""
    made: list[Daemon] = []

    def make(
        *, images: bool = False, start: bool = True, user: User | None = None, state: Path | None = None
    ) -> Daemon:
        template: Path = request.getfixturevalue("template_state" if images else "bare_state")
        state = state or short_directory()
        templates.copy_state(template, state, owner=user.uid if user else None)
        log = None if user else state.with_suffix(".log")
        daemon = Daemon(state, user=user, log=log)
        daemon.errors_expected = request.node.get_closest_marker("daemon_errors") is not None
        made.append(daemon)
        return daemon.start() if start else daemon

    yield make
    failures: list[BaseException] = []
    for daemon in reversed(made):
        print(f"the log of {daemon.state}:\n{daemon.tail()}")  # shown when the test fails
        try:
            daemon.close()
        except BaseException as error:
            failures.append(error)
        finally:
            daemon.state.with_suffix(".log").unlink(missing_ok=True)
    if failures:
        raise failures[0]


@pytest.fixture(scope="session")
def inn(daemon: Daemon) -> Inn:
    return daemon.inn


@pytest.fixture
def created(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of an instance of `tiny` that was never started."""
    name = "own-" + "".join(char for char in request.node.name.lower() if char.isalnum())[:40]
    daemon.client.instances.create({"image": "tiny"}, name=name)
    daemon.client.instances.handle(name).wait("stopped")
    yield name
    if name in daemon.names():
        daemon.client.instances.handle(name).remove(force=True)


@pytest.fixture
def started(daemon: Daemon, created: str) -> str:
    """QEMU runs; the guest has only begun to boot."""
    daemon.client.instances.handle(created).start()
    return created


@pytest.fixture
def ready(daemon: Daemon, started: str) -> str:
    """The guest agent answers."""
    daemon.client.instances.handle(started).wait("ready")
    return started


@pytest.fixture(scope="session")
def shared_vm(daemon: Daemon) -> str:
    """Ready, with its address known, so that nothing happens to it by itself any more."""
    daemon.client.instances.create({"image": "tiny"}, name="shared", start=True, wait="ready")
    daemon.watch("shared", lambda vm: vm["addresses"], "has an address", 40.0)
    return "shared"


@pytest.fixture(scope="session")
def boot_disks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("disks")
    return {kind: bootables.boot_disk(place / f"{kind}.img", kind) for kind in bootables.KINDS}


@pytest.fixture
def boot_disk(boot_disks: dict[str, Path]) -> Path:
    """Says a line on the serial port and halts."""
    return boot_disks["halt"]


@pytest.fixture
def small(boot_disks: dict[str, Path]) -> Callable[..., dict[str, Any]]:
    """The spec of an instance without an operating system."""

    def spec(kind: str = "halt", **fields: Any) -> dict[str, Any]:
        return {
            "disks": [{"name": "root", "copy_of": str(boot_disks[kind])}],
            "networks": [],
            "memory": {"size": "16MiB"},
            "display": {"vga": "none"},
        } | fields

    return spec


@pytest.fixture
def ordinary_user() -> Iterator[User]:
    """Root borrows a user without an entry anywhere; anybody else is one already."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    home = short_directory()
    user = User(12345, home)
    os.chown(home, user.uid, user.uid)
    yield user
    left = traces.processes(f"HOME={home}")
    for pid in left:
        traces.kill(pid)
    shutil.rmtree(home, ignore_errors=True)
    shutil.rmtree(f"/tmp/inn-{user.uid}", ignore_errors=True)
    assert not left, f"processes of the user are left: {left}"


@pytest.fixture(autouse=True)
def ambient(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test leaves behind fails it: processes, files, descriptors, taps, cgroups, logged errors."""
    if AMBIENT_DIRECTORIES.isdisjoint(request.path.parts):
        yield
        return
    before = [(daemon, _Seen(daemon)) for daemon in LIVING if daemon.alive and not daemon.checked]
    objects = traces.host_objects()
    yield
    assert traces.host_objects() <= objects
    for daemon, seen in before:
        if daemon in LIVING:
            seen.compare(errors_expected=request.node.get_closest_marker("daemon_errors") is not None)


class _Seen:
    """A daemon that outlives the test, as it was before."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._pid = daemon.pid
        self._log_size = daemon.log.stat().st_size
        self._state = self._now()
        self._descriptors = traces.descriptor_names(daemon.pid)

    def _now(self) -> tuple[set[int], set[str], list[str]]:
        paths = self._daemon.paths
        return set(self._daemon.helpers()), traces.instance_files(paths), traces.control_groups(paths.state)

    def compare(self, *, errors_expected: bool) -> None:
        assert self._daemon.alive, "the shared daemon ended"
        eventually(
            lambda: self._now() == self._state or None,
            f"processes, files and control groups as before the test, {self._state}; now {self._now()}",
            SETTLE_S,
        )
        if self._daemon.pid == self._pid:
            eventually(
                lambda: traces.descriptors(self._pid) <= len(self._descriptors),
                f"no descriptor more than {self._descriptors}, now {traces.descriptor_names(self._pid)}",
                SETTLE_S,
            )
        if not errors_expected:
            assert traces.complaints(self._daemon.log, self._log_size) == []
