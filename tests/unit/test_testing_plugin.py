"""The pytest plugin: fixtures that give every test a VM of its own, against a fake daemon."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from fakes.api_server import ApiServer, Body, Request, api_server, instance

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
# Loaded by its entry point where the package was installed since there is one.
INSTALLED = any(one.name == "innkeeper" for one in entry_points(group="pytest11"))
LOADED = () if INSTALLED else ("-p", "innkeeper.testing.plugin")


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with api_server() as running:
        numbers = iter(range(1, 100))

        def fork(request: Request) -> dict[str, Any]:
            parent = request.path.split("/")[3]
            return {"instances": [instance(f"{parent}-{next(numbers)}")], "parent": parent, "pause_ms": 1.0}

        running.answer("POST", "/v1/holds", Body(b"held\n", chunked=True))
        running.answer("POST", "/v1/instances", lambda request: instance(request.json()["name"]))
        running.answer("POST", "/v1/instances/.*/fork", fork)
        running.answer("DELETE", "/v1/instances/.*", {"removed": "x"})
        yield running


@pytest.fixture
def project(pytester: pytest.Pytester, server: ApiServer) -> pytest.Pytester:
    pytester.makeini(f"[pytest]\ninnkeeper_state = {server.paths.state}\ninnkeeper_image = debian\n")
    return pytester


def test_every_test_has_a_fork_of_one_vm(project: pytest.Pytester, server: ApiServer) -> None:
    project.makepyfile(
        """
        seen = set()
        def test_one(vm):
            seen.add(vm.name)
        def test_two(vm):
            seen.add(vm.name)
            assert len(seen) == 2
        def test_three(vm):
            assert False
        def test_without():
            pass
        """
    )
    result = project.runpytest_inprocess(*LOADED)
    result.assert_outcomes(passed=3, failed=1)
    (created,) = server.sent("POST", "/v1/instances")
    (held,) = server.sent("POST", "/v1/holds")
    body = created.json()
    assert body["spec"] == {"image": "debian"} and body["hold"] == held.json()["token"]
    forks = server.sent("POST", f"/v1/instances/{body['name']}/fork")
    assert [one.json()["hold"] for one in forks] == [body["hold"]] * 3
    removed = [one.path.split("/")[3] for one in server.requests if one.method == "DELETE"]
    assert removed == [*(f"{body['name']}-{number}" for number in (1, 2, 3)), body["name"]]


def test_what_is_forked_can_be_overridden(project: pytest.Pytester, server: ApiServer) -> None:
    project.makeconftest(
        """
        import pytest
        @pytest.fixture(scope="session")
        def innkeeper_vm_spec():
            return {"image": "tiny", "memory": {"size": "1GiB"}}
        @pytest.fixture(scope="session")
        def innkeeper_vm_template(innkeeper_vm_template):
            innkeeper_vm_template.prepared = True
            return innkeeper_vm_template
        """
    )
    project.makepyfile("def test_it(vm, innkeeper_vm_template):\n    assert innkeeper_vm_template.prepared\n")
    project.runpytest_inprocess(*LOADED).assert_outcomes(passed=1)
    assert server.sent("POST", "/v1/instances")[0].json()["spec"]["memory"] == {"size": "1GiB"}


def test_nothing_happens_unless_a_test_asks(project: pytest.Pytester, server: ApiServer) -> None:
    project.makepyfile("def test_it():\n    pass\n")
    project.runpytest_inprocess(*LOADED).assert_outcomes(passed=1)
    assert server.requests == []
    result = project.runpytest_inprocess(*LOADED, "--fixtures")
    result.stdout.fnmatch_lines(["vm -- *", "*of this test's own*"])


def test_loading_it_imports_no_client() -> None:
    code = "import sys, innkeeper.testing.plugin as _; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    ours = {name for name in out.split() if name.startswith("innkeeper")}
    assert ours == {"innkeeper", "innkeeper.testing", "innkeeper.testing.plugin"}


def test_the_package_tells_pytest_and_does_not_need_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"innkeeper": "innkeeper.testing.plugin"}
    assert not any(one.startswith("pytest") for one in project["dependencies"])
