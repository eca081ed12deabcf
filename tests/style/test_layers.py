"""The layout's rules as tests: imports only along the arrow, files that stay readable, children
started in one place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "innkeeper"

BASE = {"errors", "units", "clock", "paths", "version", "telemetry"}
# package -> what of ours it may import besides BASE and itself (docs/architecture.md has the picture)
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "units": {"errors"},
    "clock": set(),
    "paths": {"errors"},
    "version": set(),
    "telemetry": set(),
    "spec": set(),
    "store": {"spec"},
    "control": {"spec", "store"},
    "drivers": set(),
    "inspect": set(),
    "engine": {"drivers", "inspect"},
    "guest": {"drivers"},
    "images": {"drivers"},
    "agent": {"spec", "store", "engine", "drivers", "guest", "images", "inspect"},
    "api": {"spec", "store", "control", "agent.live"},
    "client": set(),
    "cli": {"client", "spec", "guest.files", "guest.untar", "daemon.main"},
    "daemon": {"agent", "api", "spec", "store", "engine", "drivers", "images"},
    "testing": {"client"},
    "": {"client", "errors"},  # innkeeper/__init__.py: the SDK's public names
}
# Size limits of the design; a file over FILE_LINES needs a reason here.
FILE_LINES, CLASS_LINES, FUNCTION_LINES = 420, 260, 66
MODULES = sorted(SRC.rglob("*.py"))


def _package(path: Path) -> str:
    relative = path.relative_to(SRC)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem.replace("__init__", "")


def _imports(tree: ast.AST) -> set[str]:
    """Modules of ours a file imports, without the leading `innkeeper.`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("innkeeper")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("innkeeper"):
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return {name.removeprefix("innkeeper").removeprefix(".") for name in found}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SRC)))
def test_imports_follow_the_arrow(path: Path) -> None:
    package = _package(path)
    allowed = {*MAY_IMPORT[package], *BASE, package}
    for name in _imports(ast.parse(path.read_text())):
        assert not name or any(name == one or name.startswith(f"{one}.") for one in allowed), (
            f"{package} may not import innkeeper.{name}"
        )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SRC)))
def test_sizes_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES, "split the file by verb or by idea"
    for node in ast.walk(ast.parse(text)):
        length = (getattr(node, "end_lineno", 0) or 0) - getattr(node, "lineno", 0) + 1
        if isinstance(node, ast.ClassDef):
            assert length <= CLASS_LINES, f"class {node.name} has {length} lines"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SRC)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "a module docstring is missing"


def test_children_are_started_in_one_place() -> None:
    # The client starts the daemon, edit the user's editor; neither has a runner to go through.
    may = {"drivers/run.py", "client/autostart.py", "cli/commands/edit.py"}
    for path in MODULES:
        relative = str(path.relative_to(SRC))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in {
                "Popen",
                "create_subprocess_exec",
                "create_subprocess_shell",
                "system",
                "posix_spawn",
            }:
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                if owner in {"subprocess", "asyncio", "os"}:
                    assert relative in may, f"{relative} starts a process"
