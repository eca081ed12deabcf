"""Columns of numbers over time, in little memory and of bounded length. Pure.

A value takes 16 bits: its logarithm, so that 0.0001 and 10^15 have the same relative precision (0.04 %),
which no plot and no advice can tell from the exact one. A column that never changed takes nothing.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

_PER_OCTAVE: Final = 1023
_LEAST: Final = 2.0**-14  # what is smaller is zero
_OFFSET: Final = 14 * _PER_OCTAVE + 1
_LARGEST_CODE: Final = 0xFFFE
MISSING: Final = 0xFFFF
_SLACK: Final = 16  # a full ring drops so many parts of itself at once

_MAGIC: Final = b"INNRING1"
_MAX_HEADER_BYTES: Final = 1 << 20


class Damaged(ValueError):
    """Not a ring as it was written."""


def encode(value: float | None) -> int:
    if value is None or math.isnan(value):
        return MISSING
    if value < _LEAST:
        return 0
    return min(_LARGEST_CODE, round(math.log2(min(value, 2.0**60)) * _PER_OCTAVE) + _OFFSET)


@lru_cache(maxsize=8192)
def decode(code: int) -> float | None:
    """To five digits: there are not more in it."""
    if code == MISSING:
        return None
    return 0.0 if code == 0 else float(f"{2.0 ** ((code - _OFFSET) / _PER_OCTAVE):.5g}")


class Column:
    """`length` values. As long as all are the same there is only that one."""

    __slots__ = ("codes", "constant", "length")

    def __init__(self, length: int = 0, constant: int = MISSING) -> None:
        self.length, self.constant = length, constant
        self.codes: array[int] | None = None

    def append(self, code: int) -> None:
        if self.codes is None and code != self.constant:
            if self.length == 0:
                self.constant = code
            else:
                self.codes = array("H", [self.constant]) * self.length
        if self.codes is not None:
            self.codes.append(code)
        self.length += 1

    def drop(self, count: int) -> None:
        """The oldest."""
        if self.codes is not None:
            del self.codes[:count]
            if self.codes and self.codes.count(self.codes[0]) == len(self.codes):
                self.constant, self.codes = self.codes[0], None
        self.length -= count

    def values(self, places: Sequence[int]) -> tuple[float | None, ...]:
        """Those at these places, which are in order."""
        if self.codes is None:
            return (decode(self.constant),) * len(places)
        all_of_them = len(places) == self.length
        return tuple(map(decode, self.codes if all_of_them else [self.codes[place] for place in places]))

    @property
    def size_bytes(self) -> int:
        return 0 if self.codes is None else 2 * len(self.codes)


@dataclass
class _Bucket:
    """What is being added up: averages weigh each value by how long it held."""

    stamp: int
    sums: dict[str, float] = field(default_factory=dict)
    spans: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)

    def add(self, span_s: float, values: Mapping[str, float | None]) -> None:
        for name, value in values.items():
            if value is not None:
                self.sums[name] = self.sums.get(name, 0.0) + value * span_s
                self.spans[name] = self.spans.get(name, 0.0) + span_s
                self.peaks[name] = max(self.peaks.get(name, value), value)

    def averages(self) -> dict[str, float]:
        return {name: total / self.spans[name] for name, total in self.sums.items()}


@dataclass(frozen=True, slots=True)
class Row:
    """One bucket: when it began (seconds since the epoch), averages and peaks of what is known."""

    at: float
    average: Mapping[str, float]
    peak: Mapping[str, float]


Values = dict[str, tuple[float | None, ...]]


@dataclass(frozen=True, slots=True)
class Table:
    """Buckets by column: one number for each time, None where it is not known."""

    times: tuple[float, ...]
    average: Values
    peak: Values


class Ring:
    """Buckets of `step_s` seconds; at least the last `capacity` of them are kept. A span without values has
    no bucket. Of a clock that is set back both are kept, in the order in which they came."""

    def __init__(self, step_s: int, capacity: int) -> None:
        self.step_s, self.capacity = step_s, capacity
        self._stamps = array("I")
        self._averages: dict[str, Column] = {}
        self._peaks: dict[str, Column] = {}
        self._open: _Bucket | None = None

    def __len__(self) -> int:
        return len(self._stamps) + (self._open is not None)

    @property
    def size_bytes(self) -> int:
        columns = (*self._averages.values(), *self._peaks.values())
        return self._stamps.itemsize * len(self._stamps) + sum(column.size_bytes for column in columns)

    def add(self, at: float, span_s: float, values: Mapping[str, float | None]) -> None:
        """`values` held for the `span_s` seconds before `at` (seconds since the epoch)."""
        if span_s <= 0:
            return
        stamp = max(0, int((at - span_s / 2) // self.step_s))
        if self._open is not None and self._open.stamp != stamp:
            self._close_bucket()
        if self._open is None:
            self._open = _Bucket(stamp)
        self._open.add(span_s, values)

    def _close_bucket(self) -> None:
        bucket, self._open = self._open, None
        assert bucket is not None
        rows = len(self._stamps)
        self._stamps.append(bucket.stamp)
        for columns, values in ((self._averages, bucket.averages()), (self._peaks, bucket.peaks)):
            for name in values:
                if name not in columns:
                    columns[name] = Column(rows)
            for name, column in columns.items():
                column.append(encode(values.get(name)))
        slack = max(1, self.capacity // _SLACK)
        if len(self._stamps) >= self.capacity + slack:
            self._drop(len(self._stamps) - self.capacity)

    def _drop(self, count: int) -> None:
        del self._stamps[:count]
        for columns in (self._averages, self._peaks):
            for name, column in list(columns.items()):
                column.drop(count)
                if column.codes is None and column.constant == MISSING:
                    del columns[name]  # a vCPU that was unplugged a day ago

    def table(
        self, since: float = 0.0, average: Collection[str] | None = None, peak: Collection[str] | None = None
    ) -> Table:
        """Oldest first, the unfinished one last: those that ended after `since`. With `average` or `peak` of
        these values only."""
        places = [place for place, stamp in enumerate(self._stamps) if (stamp + 1) * self.step_s > since]
        times = [self._stamps[place] * self.step_s for place in places]
        last = self._open
        if last is not None and (last.stamp + 1) * self.step_s <= since:
            last = None
        averages = _values(self._averages, places, last.averages() if last else None, average)
        peaks = _values(self._peaks, places, last.peaks if last else None, peak)
        return Table((*times, *((last.stamp * self.step_s,) if last else ())), averages, peaks)

    def rows(self, since: float = 0.0) -> list[Row]:
        """The same, bucket by bucket."""
        return rows_of(self.table(since))

    def finish(self) -> None:
        """Nothing more comes for the bucket that is being added up."""
        if self._open is not None:
            self._close_bucket()

    def dump(self) -> bytes:
        """All buckets that are finished, with a check sum."""
        header: dict[str, Any] = {"step_s": self.step_s, "rows": len(self._stamps), "columns": []}
        parts = [self._stamps.tobytes()]
        for kind, columns in (("average", self._averages), ("peak", self._peaks)):
            for name, column in columns.items():
                header["columns"].append([kind, name, column.constant, column.codes is not None])
                if column.codes is not None:
                    parts.append(column.codes.tobytes())
        head = json.dumps(header).encode()
        body = _MAGIC + struct.pack("<I", len(head)) + head + b"".join(parts)
        return body + struct.pack("<I", zlib.crc32(body))

    def load(self, data: bytes) -> None:
        """What `dump` gave. Raises Damaged, and stays as it was."""
        try:
            stamps, averages, peaks = _parse(data, self.step_s)
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise Damaged(str(error) or type(error).__name__) from None
        self._stamps, self._averages, self._peaks, self._open = stamps, averages, peaks, None
        if len(stamps) > self.capacity:
            self._drop(len(stamps) - self.capacity)


def _values(
    columns: Mapping[str, Column],
    places: Sequence[int],
    last: Mapping[str, float] | None,
    wanted: Collection[str] | None,
) -> Values:
    """What is known at least once."""
    found: Values = {}
    for name in dict.fromkeys((*columns, *(last or ()))):
        if wanted is not None and name not in wanted:
            continue
        column = columns.get(name) or Column(len(places))
        values = column.values(places)
        if last is not None:
            values = (*values, last.get(name))
        if any(value is not None for value in values):
            found[name] = values
    return found


def rows_of(table: Table) -> list[Row]:
    return list(map(Row, table.times, _by_row(table.average, table), _by_row(table.peak, table)))


def _by_row(values: Values, table: Table) -> Iterable[dict[str, float]]:
    if not values:
        return ({} for _ in table.times)
    names = tuple(values)
    return (
        {name: value for name, value in zip(names, row, strict=True) if value is not None}
        for row in zip(*values.values(), strict=True)
    )


def table_of(rows: Sequence[Row]) -> Table:
    return Table(
        tuple(row.at for row in rows),
        _by_column([row.average for row in rows]),
        _by_column([row.peak for row in rows]),
    )


def _by_column(rows: Sequence[Mapping[str, float]]) -> Values:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: tuple(row.get(name) for row in rows) for name in names}


def _parse(data: bytes, step_s: int) -> tuple[array[int], dict[str, Column], dict[str, Column]]:
    body, (crc,) = data[:-4], struct.unpack("<I", data[-4:])
    if not body.startswith(_MAGIC) or zlib.crc32(body) != crc:
        raise Damaged("not what was written")
    (length,) = struct.unpack_from("<I", body, len(_MAGIC))
    start = len(_MAGIC) + 4
    if length > _MAX_HEADER_BYTES:
        raise Damaged("its header is too long")
    header = json.loads(body[start : start + length])
    rows = int(header["rows"])
    if header["step_s"] != step_s:
        raise Damaged(f"it has buckets of {header['step_s']} s")
    place = start + length

    def taken(code: str) -> array[int]:
        nonlocal place
        values = array(code)
        size = values.itemsize * rows
        if rows < 0 or place + size > len(body):
            raise Damaged("it is cut off")
        values.frombytes(body[place : place + size])
        place += size
        return values

    stamps = taken("I")
    found: dict[str, dict[str, Column]] = {"average": {}, "peak": {}}
    for kind, name, constant, varies in header["columns"]:
        column = Column(rows, int(constant))
        if varies:
            column.codes = taken("H")
        found[kind][str(name)] = column
    return stamps, found["average"], found["peak"]


def merge(rows: Sequence[Row], step_s: int) -> list[Row]:
    """Fewer, longer buckets: averages of averages (each weighs the same), the highest of the peaks."""
    groups: list[tuple[int, list[Row]]] = []
    for row in rows:
        stamp = int(row.at // step_s)
        if not groups or groups[-1][0] != stamp:
            groups.append((stamp, []))
        groups[-1][1].append(row)
    return [Row(stamp * step_s, _mean(group), _highest(group)) for stamp, group in groups]


def _mean(rows: Iterable[Row]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.average.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _highest(rows: Iterable[Row]) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in rows:
        for name, value in row.peak.items():
            found[name] = max(found.get(name, value), value)
    return found
