"""Fixtures of the command line's tests: a fake daemon, and `inn` run against it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from fakes.api_server import ApiServer, api_server
from innkeeper.cli.main import main


@dataclass
class Ran:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Inn = Callable[..., Ran]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with api_server() as running:
        monkeypatch.setenv("INNKEEPER_STATE", str(running.paths.state))
        monkeypatch.delenv("INNKEEPER_DEBUG", raising=False)
        yield running


@pytest.fixture
def inn(server: ApiServer, capfd: pytest.CaptureFixture[str]) -> Inn:
    """Run one command line in this process."""

    def run(*args: str, stdin: bytes | None = None) -> Ran:
        capfd.readouterr()
        with _stdin(stdin):
            status = main(args)
        return Ran(status, *capfd.readouterr())

    return run


@contextlib.contextmanager
def _stdin(data: bytes | None) -> Iterator[None]:
    """`data` as our standard input; at its end when None."""
    read_end, write_end = os.pipe()
    before = os.dup(0)
    try:
        os.dup2(read_end, 0)
        os.write(write_end, data or b"")
        os.close(write_end)
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(read_end)
