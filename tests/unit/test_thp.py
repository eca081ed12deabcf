"""Programs started without transparent huge pages, and the setting of our own left as it was."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from innkeeper.drivers import thp


def enabled(status: str) -> str:
    """The line of /proc/PID/status (proc(5)); the kernel says 0 also where it has none at all."""
    return next((line.split()[1] for line in status.splitlines() if line.startswith("THP_enabled")), "")


def test_a_child_has_none_and_we_have_them_again() -> None:
    before = enabled(Path("/proc/self/status").read_text())
    if before != "1":
        pytest.skip(f"this kernel does not tell, or gives no huge pages: THP_enabled={before!r}")
    with thp.denied():
        child = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True)
    assert enabled(child.stdout) == "0"
    assert enabled(Path("/proc/self/status").read_text()) == "1"
    child = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True)
    assert enabled(child.stdout) == "1"
