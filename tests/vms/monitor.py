"""QEMU's monitor asked directly, while no daemon has it: the other opinion."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TLB = re.compile(r"^([0-9a-f]{16}): ([0-9a-f]{16}) ([XGPDACTUW-]{9})", re.M)
_MEM = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) [0-9a-f]+ ([u-])([r-])([w-])", re.M)


@dataclass(frozen=True)
class TlbLine:
    virtual: int
    physical: int
    flags: str  # of the last entry: X: not executable, G, P: large, D, A, C, T, U, W

    def has(self, flag: str) -> bool:
        return flag in self.flags


class Monitor:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._stream.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        self._stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._stream.flush()
        while True:
            answer = json.loads(self._stream.readline())
            if "event" not in answer:
                assert "return" in answer, answer
                return answer["return"]

    def human(self, line: str) -> str:
        return str(self.execute("human-monitor-command", **{"command-line": line}))

    def physical(self, virtual: int) -> int | None:
        match = re.match(r"gpa: (0x[0-9a-f]+)", self.human(f"gva2gpa {virtual:#x}"))
        return int(match[1], 16) if match else None

    def host(self, physical: int) -> int | None:
        match = re.search(r"is (0x[0-9a-f]+)", self.human(f"gpa2hva {physical:#x}"))
        return int(match[1], 16) if match else None

    def tlb(self) -> list[TlbLine]:
        found = _TLB.findall(self.human("info tlb"))
        return [TlbLine(int(virtual, 16), int(physical, 16), flags) for virtual, physical, flags in found]

    def ranges(self) -> list[tuple[int, int, bool, bool]]:
        """(start, end, for user programs, writable), end exclusive; rights of all levels together."""
        found = _MEM.findall(self.human("info mem"))
        return [
            (int(start, 16), int(end, 16), user == "u", write == "w") for start, end, user, _, write in found
        ]


@contextmanager
def connected(path: Path) -> Iterator[Monitor]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20.0)
        connection.connect(str(path))
        with connection.makefile("rw") as stream:
            yield Monitor(stream)
