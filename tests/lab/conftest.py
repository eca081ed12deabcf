"""Tests that need a KVM of their own to reload, two NUMA nodes and root: they run inside the nested lab.

`make lab` boots it, brings this tree into it, and runs pytest there. Elsewhere they are skipped, and say so.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from vms import templates
from vms.daemon import Daemon, short_directory
from vms.labhost import IN_LAB, Paging, reload_kvm

HERE = Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.lab)
            if not os.environ.get(IN_LAB):
                item.add_marker(pytest.mark.skip(reason="runs inside the nested lab only: make lab"))
    # Those with shadow page tables last: then KVM is loaded anew, and the daemon started, only once.
    items.sort(key=lambda item: "shadow" in getattr(getattr(item, "callspec", None), "params", {}).values())


@pytest.fixture(scope="session")
def tiny_image() -> Path:
    """Brought along: the lab has no package sources to build it from."""
    return Path(os.environ[IN_LAB])


@pytest.fixture(scope="session", autouse=True)
def debugfs() -> None:
    """KVM counts into it; the image does not mount it by itself."""
    if os.environ.get(IN_LAB) and not Path("/sys/kernel/debug/kvm").exists():
        subprocess.run(["mount", "-t", "debugfs", "none", "/sys/kernel/debug"], check=True)


@pytest.fixture(scope="session")
def session_daemon(tiny_image: Path) -> Iterator[Daemon]:
    """One for all of them: in an emulated CPU to start another takes as long as to boot a guest."""
    reload_kvm("npt")
    daemon = Daemon(short_directory())
    try:
        templates.register(daemon.state, "tiny", tiny_image)
        daemon.start()
        daemon.checked = True
        yield daemon
    finally:
        print(f"the daemon's log:\n{daemon.tail()}")
        daemon.close()


@pytest.fixture(scope="module", params=["npt", "shadow"])
def paging(request: pytest.FixtureRequest) -> Paging:
    wanted: Paging = request.param
    return wanted


@pytest.fixture(scope="module")
def host(paging: Paging, session_daemon: Daemon) -> Iterator[Daemon]:
    """The daemon on KVM that was loaded to use the CPU's nested paging, or to keep shadow page tables, as it
    met it at its start. Without VMs of other modules."""
    if reload_kvm(paging):
        session_daemon.restart()
    yield session_daemon
    _remove(session_daemon)


@pytest.fixture(scope="module")
def plain_host(session_daemon: Daemon) -> Iterator[Daemon]:
    """The same with nested paging, for what does not depend on it."""
    if reload_kvm("npt"):
        session_daemon.restart()
    others = session_daemon.names()  # a module may have its guests on `host`, too
    yield session_daemon
    _remove(session_daemon, but=others)


def _remove(daemon: Daemon, but: Collection[str] = ()) -> None:
    for name in set(daemon.names()) - set(but):
        daemon.client.instances.handle(name).remove(force=True, snapshots=True)
