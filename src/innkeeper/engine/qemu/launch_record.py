"""What must be known of a running VM to adopt it, beyond what its process shows.

Written before QEMU starts, so that there is never a QEMU without one; the pid is not in it (see
process.scan).
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from innkeeper.errors import EngineError


@dataclass(frozen=True)
class LaunchRecord:
    epoch: int
    accelerator: str
    machine: str
    started_at: float
    ram_private: bool = False
    passt_pids: tuple[int, ...] = ()

    def write(self, path: Path) -> None:
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(asdict(self)))
        os.replace(draft, path)

    @classmethod
    def read(cls, path: Path) -> LaunchRecord:
        """Raises EngineError when the file is missing or not ours."""
        try:
            members = json.loads(path.read_text())
            return cls(**{**members, "passt_pids": tuple(members.get("passt_pids", ()))})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise EngineError(f"No launch record at {path}") from error
