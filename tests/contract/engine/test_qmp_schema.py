"""Every QMP command and event we rely on is as the installed QEMU describes it (query-qmp-schema)."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pytest
from engine_harness import QemuBench

from helpers import run
from innkeeper.engine.qemu import affinity, commands, counters, dimms, inspection, machine, throttle, vcpus
from innkeeper.engine.qemu.qmp import Monitor
from vms.daemon import short_directory

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def schema() -> dict[str, dict[str, Any]]:
    """By name: commands and events; by number: the types they refer to."""
    return run(_schema())


async def _schema() -> dict[str, dict[str, Any]]:
    bench = QemuBench(short_directory())
    plan = bench.plan(paused=True)
    one = await bench.begin(plan)
    try:
        await one.detach()  # QMP takes one client at a time
        monitor = Monitor("schema")
        await monitor.connect(bench.files(plan).qmp)
        entries: list[dict[str, Any]] = await monitor.execute("query-qmp-schema")
        await monitor.disconnect()
        return {entry["name"]: entry for entry in entries}
    finally:
        await bench.close()


def _members(schema: dict[str, dict[str, Any]], type_name: str) -> dict[str, dict[str, Any]]:
    return {member["name"]: member for member in schema[type_name].get("members", ())}


SENT = commands.SCHEMA | inspection.SCHEMA | inspection.OPTIONAL


@pytest.mark.parametrize("command", SENT)
def test_the_command_takes_what_we_send(schema: dict[str, dict[str, Any]], command: str) -> None:
    if command in inspection.OPTIONAL and command not in schema:
        return
    assert command in schema and schema[command]["meta-type"] == "command"
    known = _members(schema, schema[command]["arg-type"])
    assert set(SENT[command]) <= set(known)
    needed = {name for name, member in known.items() if "default" not in member}
    assert needed <= set(SENT[command]), "QEMU insists on an argument that we do not know"


@pytest.mark.parametrize("event", commands.EVENTS)
def test_the_event_has_what_we_read(schema: dict[str, dict[str, Any]], event: str) -> None:
    assert event in schema and schema[event]["meta-type"] == "event"
    assert set(commands.EVENTS[event]) <= set(_members(schema, schema[event]["arg-type"]))


def test_every_command_we_send_is_in_the_list() -> None:
    modules = (affinity, commands, counters, dimms, machine, throttle, vcpus)
    sent = {name for one in modules for name in _first_arguments(one, "execute")}
    assert sent <= set(commands.SCHEMA)
    assert "query-status" in sent and "stop" in sent
    looked = _first_arguments(inspection, "_ask")
    assert looked == set(inspection.SCHEMA | inspection.OPTIONAL)


def test_every_event_we_match_is_in_the_list() -> None:
    tree = ast.parse(inspect.getsource(machine))
    patterns = [node for node in ast.walk(tree) if isinstance(node, ast.MatchValue)]
    names = {node.value.value for node in patterns if isinstance(node.value, ast.Constant)}
    assert names and names <= set(commands.EVENTS)


def _first_arguments(module: object, method: str) -> set[str]:
    """The literal first arguments of calls of `method` in the source of a module."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):  # type: ignore[arg-type]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method:
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                found.add(first.value)
    return found
