"""The program that makes a kernel draw new random numbers, run by this one, and written for another."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest

from innkeeper.images.elf import linkage
from innkeeper.images.reseed import program


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64", "riscv64"])
def test_it_is_a_program_that_needs_nothing(architecture: str) -> None:
    data = program(architecture)
    assert data is not None and data.endswith(b"/dev/urandom\0") and len(data) < 200
    assert not linkage(data).needed
    assert program("s390x") is None


@pytest.mark.skipif(platform.machine() != "x86_64", reason="written for x86-64")
@pytest.mark.skipif(os.geteuid() != 0, reason="the ioctl takes CAP_SYS_ADMIN")
def test_it_does_what_it_is_for(tmp_path: Path) -> None:
    file = tmp_path / "reseed"
    file.write_bytes(program("x86_64") or b"")
    file.chmod(0o755)
    assert subprocess.run([str(file)], timeout=10, check=False).returncode == 0
