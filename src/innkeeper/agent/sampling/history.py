"""What happened to one VM (or the host): the last minutes closely, the last day by the minute."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from innkeeper.agent.sampling.ring import Damaged, Ring, Row, Table, merge, rows_of, table_of

log = logging.getLogger("innkeeper.sampling")

FINE_STEP_S: Final = 5
FINE_ROWS: Final = 120  # 10 minutes
COARSE_STEP_S: Final = 60
COARSE_ROWS: Final = 1500  # 25 hours: a whole day is there at any moment of it
MAX_FILE_BYTES: Final = 16 << 20  # far more than a VM of 1,000 vCPUs takes


class History:
    def __init__(self) -> None:
        self.fine = Ring(FINE_STEP_S, FINE_ROWS)
        self.coarse = Ring(COARSE_STEP_S, COARSE_ROWS)

    def add(self, at: float, span_s: float, values: Mapping[str, float | None]) -> None:
        """`values` held for the `span_s` seconds before `at`, seconds since the epoch."""
        self.fine.add(at, span_s, values)
        self.coarse.add(at, span_s, values)

    @property
    def size_bytes(self) -> int:
        return self.fine.size_bytes + self.coarse.size_bytes

    def rows(self, since: float, resolution_s: float) -> tuple[int, list[Row]]:
        """The step in seconds and the buckets, oldest first. The step is `resolution_s`, or where that is
        between those kept the next that can be had."""
        step_s, table = self.table(since, resolution_s)
        return step_s, rows_of(table)

    def table(
        self,
        since: float,
        resolution_s: float,
        average: Collection[str] | None = None,
        peak: Collection[str] | None = None,
    ) -> tuple[int, Table]:
        """The same by column, which is how it is kept: it takes a fraction of the time, and less of it where
        not all values are wanted."""
        ring = self.fine if resolution_s < COARSE_STEP_S else self.coarse
        step_s = max(1, round(resolution_s / ring.step_s)) * ring.step_s
        found = ring.table(since, average, peak)
        return step_s, found if step_s == ring.step_s else table_of(merge(rows_of(found), step_s))

    def finish(self) -> None:
        """Before it is saved for the last time."""
        self.fine.finish()
        self.coarse.finish()

    def save(self, path: Path) -> None:
        """Whole or not at all. Raises OSError; where the directory is gone the VM is, too."""
        part = path.with_name(path.name + ".part")
        parts = [self.fine.dump(), self.coarse.dump()]
        try:
            with open(part, "wb") as file:
                for data in parts:
                    file.write(len(data).to_bytes(4, "little") + data)
            os.replace(part, path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            raise


def load(path: Path) -> History:
    """What was saved, or an empty one. A damaged file is told in the log and counts for nothing."""
    history = History()
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise Damaged("it is too large")
        data = path.read_bytes()
        for ring in (history.fine, history.coarse):
            length = int.from_bytes(data[:4], "little")
            ring.load(data[4 : 4 + length])
            data = data[4 + length :]
    except FileNotFoundError:
        pass
    except (Damaged, OSError, ValueError) as error:
        log.warning("the history in %s is not used: %s", path, error)
        return History()
    return history
