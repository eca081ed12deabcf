"""What is brought into the lab is all that its tests import."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from lab import payload

TESTS = Path(__file__).resolve().parents[1]
OURS = {"vms", "helpers", "innkeeper", "lab", "bench", "tests"}


def test_the_lab_has_the_packages_that_its_tests_import() -> None:
    wanted = set()
    for file in [TESTS / "conftest.py", *(TESTS / "lab").glob("*.py"), *(TESTS / "vms").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                wanted |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                wanted.add(node.module.partition(".")[0])
    wanted -= OURS | set(sys.stdlib_module_names)
    assert "pytest" in wanted
    brought = {name.split("/")[0].removesuffix(".py") for name, _ in payload.package_files(payload.REQUIRED)}
    assert wanted - brought == set()
