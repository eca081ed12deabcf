"""Tests that need a KVM of their own to reload, two NUMA nodes and root: they run inside the nested lab.

`make lab` boots it, brings this tree into it, and runs pytest there. Elsewhere they are skipped, and say so.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vms import templates
from vms.daemon import Daemon, short_directory
from vms.labhost import IN_LAB, Paging, reload_kvm

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.lab)
            if not os.environ.get(IN_LAB):
                item.add_marker(pytest.mark.skip(reason="runs inside the nested lab only: make lab"))


@pytest.fixture(scope="session")
def tiny_image() -> Path:
    """Brought along: the lab has no package sources to build it from."""
    return Path(os.environ[IN_LAB])


@pytest.fixture(scope="session", autouse=True)
def debugfs() -> None:
    """KVM counts into it; the image does not mount it by itself."""
    if os.environ.get(IN_LAB) and not Path("/sys/kernel/debug/kvm").exists():
        subprocess.run(["mount", "-t", "debugfs", "none", "/sys/kernel/debug"], check=True)


@pytest.fixture(scope="module", params=["npt", "shadow"])
def paging(request: pytest.FixtureRequest) -> Paging:
    """KVM loaded anew, to use the CPU's nested paging or to keep shadow page tables."""
    wanted: Paging = request.param
    reload_kvm(wanted)
    return wanted


@pytest.fixture(scope="module")
def host(paging: Paging, template_state: Path) -> Iterator[Daemon]:
    """A daemon that met this KVM at its start."""
    yield from _daemon(template_state)


@pytest.fixture(scope="session")
def _long_lived(template_state: Path) -> Iterator[Daemon]:
    reload_kvm("npt")
    yield from _daemon(template_state)


@pytest.fixture(scope="module")
def plain_host(_long_lived: Daemon) -> Iterator[Daemon]:
    """A daemon on KVM with nested paging, for what does not depend on it. Without VMs of other modules."""
    reload_kvm("npt")
    yield _long_lived
    for name in _long_lived.names():
        _long_lived.client.instances.handle(name).remove(force=True)


def _daemon(template: Path) -> Iterator[Daemon]:
    state = short_directory()
    templates.copy_state(template, state)
    daemon = Daemon(state).start()
    daemon.checked = True
    try:
        yield daemon
    finally:
        print(f"the daemon's log:\n{daemon.tail()}")
        daemon.close()
