"""`inn snapshot`, `inn save` and `inn restore`: what they ask of the daemon, and print."""

from __future__ import annotations

from typing import Any

from cli_harness import Inn, inn, server

from fakes.api_server import ApiServer, instance
from innkeeper.errors import Unsupported

__all__ = ["inn", "server"]  # fixtures

PATH = "/v1/instances/web/snapshots"


def _snapshot(name: str, parent: str = "", **fields: Any) -> dict[str, Any]:
    labels = {"qemu": "7.2.4", "machine": "pc-q35-7.2", "accelerator": "tcg", "cpu_model": "max"}
    return {
        "name": name, "instance": "web", "parent": parent, "kind": "memory", "state": "ready", "note": "",
        "created_at": 1.7e9, "size_bytes": 88 << 20, "ram_bytes": 256 << 20, "total_bytes": 0,
        "written_bytes": 0, "pause_ms": 21.4, "labels": labels,
    } | fields  # fmt: skip


def test_create(inn: Inn, server: ApiServer) -> None:
    asked: list[dict[str, Any]] = []

    def create(request: Any) -> dict[str, Any]:
        asked.append(request.json())
        return _snapshot(asked[-1].get("name", "s1"))

    server.answer("POST", PATH, create)
    ran = inn("snapshot", "create", "web")
    assert ran.out == "s1\n" and "stood still for 21 ms; 88.0 MiB" in ran.err
    assert inn("snapshot", "create", "web", "a", "--compress", "--json").json["name"] == "a"
    assert asked == [
        {"disks_only": False, "compress": False},
        {"disks_only": False, "compress": True, "name": "a"},
    ]


def test_list_is_a_tree(inn: Inn, server: ApiServer) -> None:
    items = [
        _snapshot("a"),
        _snapshot("b", "a"),
        _snapshot("c", "a", state="taking", total_bytes=200, written_bytes=50, size_bytes=0),
        _snapshot("d", "b"),
    ]
    server.answer("GET", PATH, {"snapshots": items, "current": "b"})
    lines = inn("snapshot", "list", "web").out.splitlines()[1:]
    assert [line[:7].rstrip() for line in lines] == ["a", "  b *", "    d", "  c"]
    assert "taking 25%" in lines[3]
    assert inn("snapshot", "list", "web", "-q").out == "a\nb\nc\nd\n"


def test_show_restore_and_rm(inn: Inn, server: ApiServer) -> None:
    server.answer("GET", f"{PATH}/a", _snapshot("a"))
    assert "machine:  pc-q35-7.2" in inn("snapshot", "show", "web", "a").out
    asked: list[dict[str, Any]] = []

    def restore(request: Any) -> dict[str, Any]:
        asked.append(request.json())
        return instance(asked[-1].get("new_name", "web"), note="")

    server.answer("POST", f"{PATH}/a/restore", restore)
    assert inn("snapshot", "restore", "web", "a").out == "web\n"
    assert inn("snapshot", "restore", "web", "a", "--as", "copy", "--no-wait").out == "copy\n"
    assert asked == [
        {"ssh_keys": False, "wait": "ready"},
        {"ssh_keys": False, "wait": "running", "new_name": "copy"},
    ]
    server.answer("POST", f"{PATH}/a/restore", Unsupported("the older 7.2", hint="install it"))
    assert inn("snapshot", "restore", "web", "a").status == 4
    server.answer("DELETE", f"{PATH}/a", {"removed": "a"})
    assert inn("snapshot", "rm", "web", "a").out == "a\n"


def test_save_and_restore(inn: Inn, server: ApiServer) -> None:
    server.answer("POST", "/v1/instances/web/save", instance("web", state="stopped"))
    server.answer("POST", "/v1/instances/web/restore", instance("web"))
    assert inn("save", "web", "--compress").out == "web\n"
    assert inn("restore", "web").out == "web\n"
