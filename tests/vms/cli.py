"""The real command line as a subprocess."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

INN = Path(sys.executable).parent / "inn"


@dataclass(frozen=True)
class User:
    """An ordinary user to run as; only root can become one."""

    uid: int
    home: Path


@dataclass(frozen=True)
class Result:
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def out(self) -> str:
        return self.stdout.decode(errors="replace")

    @property
    def err(self) -> str:
        return self.stderr.decode(errors="replace")

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    def ok(self) -> Result:
        assert self.status == 0, f"exit status {self.status}: {self.err or self.out}"
        return self

    def failed(self, status: int, *words: str) -> Result:
        """As a user must see a failure: this exit status and one line on stderr, with these words."""
        assert self.status == status, f"exit status {self.status} instead of {status}: {self.err}{self.out}"
        lines = self.err.splitlines()
        assert len(lines) == 1, f"not one line: {self.err}"
        assert lines[0].startswith("inn: ") and "Traceback" not in lines[0], lines[0]
        for word in words:
            assert word.lower() in lines[0].lower(), f"{word!r} is not in: {lines[0]}"
        return self


class Inn:
    """`inn("list", "--json")` runs it to its end."""

    def __init__(self, state: Path | None, *, user: User | None = None, env: Mapping[str, str] = {}) -> None:
        self.state, self.user = state, user
        self.env = dict(env)

    def __call__(self, *words: str | Path, stdin: bytes | IO[bytes] = b"", timeout_s: float = 90.0) -> Result:
        source: dict[str, Any] = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
        done = subprocess.run(
            self.argv(*words), capture_output=True, timeout=timeout_s, check=False, **source, **self.how()
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def popen(self, *words: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        """In the background; in a session of its own, so that signals reach it alone."""
        return subprocess.Popen(self.argv(*words), start_new_session=True, **options, **self.how())

    def argv(self, *words: str | Path) -> list[str]:
        return [str(INN), *map(str, words)]

    def how(self) -> dict[str, Any]:
        """As whom and with what environment."""
        env = {
            name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "INNKEEPER_"))
        }
        env |= {"TERM": "dumb", **self.env}
        if self.state is not None:
            env["INNKEEPER_STATE"] = str(self.state)
        if self.user is None:
            return {"env": env}
        env["HOME"] = str(self.user.home)
        return {"env": env, "user": self.user.uid, "group": self.user.uid, "extra_groups": [], "cwd": "/"}
