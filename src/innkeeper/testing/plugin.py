"""A pytest plugin: `vm` is a virtual machine for one test, as pristine as for every other.

One VM is booted when the first test asks for it (in each process, under xdist); each test gets a fork of
it, which takes a fraction of a second, and whatever the test does to it is gone afterwards. Nothing of
this happens, not even an import, unless a test asks for one of the fixtures. docs/howto/testing-with-forks.md
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from innkeeper.client.client import Client
    from innkeeper.client.instance import Instance


def pytest_addoption(parser: pytest.Parser) -> None:
    about = "Innkeeper image of the virtual machine that the fixture vm is a fork of."
    parser.addini("innkeeper_image", about, default="tiny")
    parser.addini(
        "innkeeper_state",
        "State directory of the Innkeeper daemon to use (default: that of inn).",
        default="",
    )


@pytest.fixture(scope="session")
def innkeeper_client(pytestconfig: pytest.Config) -> Client:
    """A connection to the daemon, which is started where none runs."""
    from innkeeper.client.client import connect

    return connect(pytestconfig.getini("innkeeper_state") or None)


@pytest.fixture(scope="session")
def innkeeper_hold(innkeeper_client: Client) -> Iterator[str]:
    """What is made with this token goes when this process ends, however it ends."""
    from innkeeper.client.hold import hold

    token = secrets.token_hex(8)
    with hold(innkeeper_client.transport, token):
        yield token


@pytest.fixture(scope="session")
def innkeeper_vm_spec(pytestconfig: pytest.Config) -> dict[str, Any]:
    """The spec of the virtual machine; override it for more memory, disks or networks."""
    return {"image": pytestconfig.getini("innkeeper_image")}


@pytest.fixture(scope="session")
def innkeeper_vm_template(
    innkeeper_client: Client, innkeeper_hold: str, innkeeper_vm_spec: dict[str, Any]
) -> Iterator[Instance]:
    """The virtual machine that all tests get forks of; override it to prepare it once for all of them."""
    template = innkeeper_client.instances.create(
        innkeeper_vm_spec,
        name=f"test-{secrets.token_hex(4)}",
        start=True,
        wait="ready",
        remove_when_ended=True,
        hold=innkeeper_hold,
    )
    yield template
    _remove(template)


@pytest.fixture
def vm(innkeeper_vm_template: Instance, innkeeper_hold: str) -> Iterator[Instance]:
    """A running virtual machine of this test's own, ready for `vm.exec([...])`; removed afterwards."""
    answer = innkeeper_vm_template.fork(hold=innkeeper_hold, remove_when_ended=True)
    fork = innkeeper_vm_template.sibling(answer["instances"][0])
    yield fork
    _remove(fork)


def _remove(instance: Instance) -> None:
    from innkeeper.errors import NotFound

    with suppress(NotFound):  # the test has removed it, or shut it down
        instance.remove(force=True)
