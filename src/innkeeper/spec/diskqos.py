"""Limits of a disk's rates, and its weight: the disk part of spec/qos.py.

Limits are kept by QEMU as leaky buckets (its docs/throttle.txt; the rules here are those of util/throttle.c,
throttle_is_valid()), weights by the host's I/O controller. Rates of a network card will have a file beside
this one: their shape (rate, burst, burst length) and units (`Rate`) are the same, their keeper is another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from innkeeper.errors import BadRequest
from innkeeper.spec.base import Model, Size
from innkeeper.units import KiB, format_ops, format_rate, format_size, parse_duration, parse_ops, parse_rate

# QEMU's THROTTLE_VALUE_MAX (include/qemu/throttle.h); nothing that can be measured is near it.
MOST: Final = 10**15
# Below this a request of a guest's file system takes minutes and its driver gives up: a unit is missing.
LEAST_BYTES: Final = 1 * KiB
LEAST_OPS: Final = 1
MAX_BURST_S: Final = 24 * 3600

Unit = Literal["bytes", "ops"]
UNITS: Final[tuple[Unit, ...]] = ("bytes", "ops")
DIRECTIONS: Final = ("total", "read", "write")
# Every rate that can be limited: `read_bytes`, `total_ops`, ...
RATES: Final = tuple(f"{direction}_{unit}" for unit in UNITS for direction in DIRECTIONS)


def _in_words(parse: Callable[[Any], Any], value: Any) -> Any:
    """`inn set web disks.0.qos.read_bytes=` takes a limit away."""
    if value is None or value == "":
        return None
    try:
        return parse(value)
    except BadRequest as error:
        raise ValueError(str(error)) from None
    except TypeError:
        raise ValueError(f"Not a rate: {value!r}") from None


def _bounded(value: int, least: int, shown: Callable[[int], str]) -> int:
    if value == 0:
        raise ValueError("a limit of 0 would stop the disk; leave it empty for none")
    if value < least:
        raise ValueError(
            f"{shown(value)} is too little to work with (least: {shown(least)}): a unit missing?"
        )
    if value > MOST:
        raise ValueError(f"{shown(value)} is more than any disk does: at most {shown(MOST)}")
    return value


def _rate(value: Any) -> Any:
    return _in_words(lambda text: _bounded(parse_rate(text), LEAST_BYTES, format_rate), value)


def _ops(value: Any) -> Any:
    return _in_words(lambda text: _bounded(parse_ops(text), LEAST_OPS, format_ops), value)


def _seconds(value: Any) -> Any:
    seconds = _in_words(parse_duration, value)
    if seconds is None:
        return None
    if seconds != int(seconds) or not 1 <= seconds <= MAX_BURST_S:
        raise ValueError(f"{value} is no length of a burst: write whole seconds, such as 10s, up to a day")
    return int(seconds)


def _optional_size(value: Any) -> Any:
    return None if value == "" else value


def _shown(form: Callable[[int], str]) -> PlainSerializer:
    return PlainSerializer(
        lambda value: None if value is None else form(value), return_type=str | None, when_used="json"
    )


# Bytes per second, operations per second, and whole seconds.
Rate = Annotated[int | None, BeforeValidator(_rate), _shown(format_rate)]
Ops = Annotated[int | None, BeforeValidator(_ops), _shown(format_ops)]
Seconds = Annotated[int | None, BeforeValidator(_seconds), _shown("{}s".format)]

_BURST: Final = "For a while it may go up to this."
_LENGTH: Final = "For how long, at least. Without: a reserve of one second's worth, taken at any speed."


class DiskLimits(Model):
    """What may be done at most in a second: bytes such as `50MiB/s` or `100Mbit/s`, operations such as
    `500/s`. Reading and writing each have a limit, or both together (`total`)."""

    read_bytes: Rate = Field(default=None, description="Bytes read in a second, such as 50MiB/s.")
    read_bytes_burst: Rate = Field(default=None, description=_BURST)
    read_bytes_burst_length: Seconds = Field(default=None, description=_LENGTH)
    write_bytes: Rate = Field(default=None, description="Bytes written in a second.")
    write_bytes_burst: Rate = Field(default=None, description=_BURST)
    write_bytes_burst_length: Seconds = Field(default=None, description=_LENGTH)
    total_bytes: Rate = Field(default=None, description="Bytes read and written in a second.")
    total_bytes_burst: Rate = Field(default=None, description=_BURST)
    total_bytes_burst_length: Seconds = Field(default=None, description=_LENGTH)
    read_ops: Ops = Field(default=None, description="Requests to read in a second, such as 500/s.")
    read_ops_burst: Ops = Field(default=None, description=_BURST)
    read_ops_burst_length: Seconds = Field(default=None, description=_LENGTH)
    write_ops: Ops = Field(default=None, description="Requests to write in a second.")
    write_ops_burst: Ops = Field(default=None, description=_BURST)
    write_ops_burst_length: Seconds = Field(default=None, description=_LENGTH)
    total_ops: Ops = Field(default=None, description="Requests in a second.")
    total_ops_burst: Ops = Field(default=None, description=_BURST)
    total_ops_burst_length: Seconds = Field(default=None, description=_LENGTH)
    op_size: Annotated[Size | None, BeforeValidator(_optional_size)] = Field(
        default=None,
        description="A request larger than this counts as several, where operations are limited.",
    )

    @model_validator(mode="after")
    def _as_qemu_has_them(self) -> DiskLimits:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        for unit in UNITS:
            parts = [f"{one}_{unit}" for one in ("read", "write") if getattr(self, f"{one}_{unit}")]
            if parts and getattr(self, f"total_{unit}"):
                yield f"total_{unit} is for reading and writing together: leave out it or {parts[0]}"
        for name in RATES:
            yield from self._problems_of(name)
        if self.op_size is not None:
            if self.op_size < 512:
                yield f"op_size is at least 512 bytes, not {format_size(self.op_size)}"
            if not any(getattr(self, f"{one}_ops") for one in DIRECTIONS):
                yield "op_size says how operations are counted, and none are limited: leave it out"

    def _problems_of(self, name: str) -> Iterator[str]:
        shown = format_rate if name.endswith("bytes") else format_ops
        rate, burst, length = self.of(name)
        if length is not None and burst is None:
            yield f"{name}_burst_length is the length of a burst, and there is none: give {name}_burst, too"
        if burst is None:
            return
        if rate is None:
            yield f"{name}_burst goes beyond a limit, and there is none: give {name}, too"
        elif burst < rate:
            yield f"{name}_burst, {shown(burst)}, is less than {name}, {shown(rate)}"
        if length is not None and length > MOST // burst:
            yield f"{name}_burst of {shown(burst)} for {length}s is more than can be counted"

    def of(self, name: str) -> tuple[int | None, int | None, int | None]:
        """Rate, burst and burst length of one of `RATES`."""
        return getattr(self, name), getattr(self, f"{name}_burst"), getattr(self, f"{name}_burst_length")

    @property
    def limits(self) -> dict[str, int]:
        """Those that are set, by field."""
        return {name: value for name in LIMIT_FIELDS if (value := getattr(self, name)) is not None}


LIMIT_FIELDS: Final = tuple(DiskLimits.model_fields)


class LimitsInForce(DiskLimits):
    """What QEMU holds one disk to."""

    shared: bool = Field(default=False, description="With all disks that have no limits of their own.")
