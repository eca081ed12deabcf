"""The pytest plugin with real guests: what one test does to its VM, the next does not see."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest

from vms.daemon import Daemon

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.vm


def test_every_test_has_a_pristine_vm(pytester: pytest.Pytester, daemon: Daemon) -> None:
    before = daemon.names()
    pytester.makeini(f"[pytest]\ninnkeeper_state = {daemon.state}\n")
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture(scope="session")
        def innkeeper_vm_template(innkeeper_vm_template):
            innkeeper_vm_template.exec(["sh", "-c", "mkdir /srv; echo prepared >/srv/state"])
            return innkeeper_vm_template

        @pytest.mark.parametrize("number", range(2))
        def test_it(vm, number):
            assert vm.exec(["cat", "/srv/state"]).stdout == b"prepared\\n"
            vm.exec(["rm", "-rf", "/srv", "/etc"])
            assert vm.exec(["hostname"]).stdout.decode().strip() == vm.name
        """
    )
    installed = any(one.name == "innkeeper" for one in entry_points(group="pytest11"))
    loaded = () if installed else ("-p", "innkeeper.testing.plugin")
    result = pytester.runpytest_inprocess(*loaded, "--durations=0", "-vv")
    result.assert_outcomes(passed=2)
    assert daemon.names() == before
