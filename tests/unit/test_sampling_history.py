"""The ring of buckets on a simulated clock."""

from __future__ import annotations

import math
import random
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from innkeeper.agent.sampling import history as histories
from innkeeper.agent.sampling.history import COARSE_STEP_S, History
from innkeeper.agent.sampling.ring import Damaged, Ring, decode, encode, merge

START = 1_700_000_040.0  # the begin of a minute
DAY_S = 86400


@given(st.floats(min_value=2.0**-14, max_value=2.0**49))
def test_a_value_keeps_its_first_three_digits(value: float) -> None:
    kept = decode(encode(value))
    assert kept is not None and abs(kept - value) <= value * 0.0005


def test_values_with_a_meaning_of_their_own() -> None:
    assert decode(encode(0.0)) == 0.0
    assert decode(encode(1.0)) == 1.0
    assert decode(encode(None)) is None and decode(encode(math.nan)) is None
    assert decode(encode(-5.0)) == 0.0
    assert decode(encode(math.inf)) is not None


Readings = st.lists(
    st.tuples(
        st.floats(0.1, 300.0),  # seconds until the next reading
        st.floats(0.0, 64.0),
        st.booleans(),  # whether a second value is known, too
    ),
    min_size=1,
    max_size=200,
)


@settings(max_examples=60)
@given(Readings, st.sampled_from([5, 60]), st.integers(2, 40))
def test_buckets_hold_averages_and_peaks(
    readings: list[tuple[float, float, bool]], step_s: int, capacity: int
) -> None:
    """Against the plainest bookkeeping there is."""
    ring, now = Ring(step_s, capacity), START
    plain: dict[int, list[tuple[float, float]]] = {}
    for span, value, both in readings:
        now += span
        ring.add(now, span, {"cpu": value, "other": value if both else None})
        plain.setdefault(int((now - span / 2) // step_s), []).append((span, value))
    rows = ring.rows()
    assert capacity <= len(ring) <= capacity + capacity // 16 + 2 or len(ring) == len(plain)
    assert [row.at for row in rows] == [stamp * step_s for stamp in sorted(plain)][-len(rows) :]
    for row in rows:
        held = plain[int(row.at // step_s)]
        average = sum(span * value for span, value in held) / sum(span for span, _ in held)
        assert row.average["cpu"] == pytest.approx(average, rel=0.001, abs=1e-4)
        assert row.peak["cpu"] == pytest.approx(max(value for _, value in held), rel=0.001, abs=1e-4)
        assert row.peak["cpu"] >= row.average["cpu"] * 0.999
        assert ("other" in row.average) <= ("cpu" in row.average)


@settings(max_examples=40)
@given(Readings)
def test_what_is_dumped_comes_back(readings: list[tuple[float, float, bool]]) -> None:
    ring, now = Ring(5, 50), START
    for span, value, both in readings:
        now += span
        ring.add(now, span, {"cpu": value, "other": value if both else None})
    ring.finish()
    again = Ring(5, 50)
    again.load(ring.dump())
    assert again.rows() == ring.rows()[-len(again) :]
    assert len(again) == min(len(ring), 50) or len(again) == len(ring)


@given(st.binary(max_size=200), st.data())
def test_damaged_data_is_refused_and_changes_nothing(noise: bytes, data: st.DataObject) -> None:
    ring = Ring(5, 50)
    for index in range(20):
        ring.add(START + 5 * index, 5.0, {"cpu": float(index)})
    good, before = ring.dump(), ring.rows()
    place = data.draw(st.integers(0, len(good) - 1))
    flipped = bytearray(good)
    flipped[place] ^= 0x10
    for bad in (noise, good[:place], bytes(flipped), good + noise if noise else b""):
        with pytest.raises(Damaged):
            ring.load(bad)
        assert ring.rows() == before


def test_a_clock_that_is_set_back_loses_nothing() -> None:
    ring = Ring(60, 100)
    for at in (START + 60, START + 120, START + 30, START + 90):
        ring.add(at, 10.0, {"cpu": 1.0})
    assert [row.at for row in ring.rows()] == [START, START + 60, START, START + 60]


def test_a_clock_that_jumps_ahead_leaves_a_gap() -> None:
    ring = Ring(60, 100)
    for at in (START + 60, START + 60 + 10 * DAY_S):
        ring.add(at, 10.0, {"cpu": 1.0})
    assert [row.at for row in ring.rows()] == [START, START + 10 * DAY_S]


@cache
def _long_ago(vcpus: int, seed: int = 1) -> tuple[History, float]:
    """Of a VM that was read every 5 s for longer than is kept; and when it was read last."""
    chance, history, now = random.Random(seed), History(), START
    while now < START + 28 * 3600:  # more than is kept
        now += 5.0
        values: dict[str, float | None] = {f"vcpu{index}": chance.random() for index in range(vcpus)}
        names = ("cpu", "wait", "resident", "private", "shared", "disk_read", "disk_write", "minor_faults")
        names += ("demand", "busiest")
        values |= {name: chance.random() * 1e6 for name in names}
        values |= {"swapped": 0.0, "throttled": None, "given_cpus": float(vcpus), "given_memory": 2.0**28}
        history.add(now, 5.0, values)
    return history, now


def test_a_whole_day_is_there_and_no_more_than_a_little() -> None:
    history, now = _long_ago(vcpus=2)
    step_s, rows = history.rows(now - DAY_S, COARSE_STEP_S)
    assert step_s == 60 and len(rows) in (DAY_S // 60, DAY_S // 60 + 1)
    assert rows[0].at <= now - DAY_S + 60 and "vcpu1" in rows[0].peak
    step_s, rows = history.rows(now - 600, 5)
    assert step_s == 5 and len(rows) in (120, 121)
    # 12 values that change, average and peak, of 16 bits, in 1,500 rows and some
    assert history.size_bytes < 100_000
    wider, _ = _long_ago(vcpus=3)
    assert wider.size_bytes - history.size_bytes < 7_000  # what one more vCPU takes


@pytest.mark.parametrize("step_s", [5, 60, 300])
def test_by_column_it_is_the_same(step_s: int) -> None:
    history, now = _long_ago(vcpus=1)
    history.add(now + 5, 5.0, {"cpu": 1.0, "new": 2.0})  # known of the unfinished bucket only
    since = now - 590
    _, rows = history.rows(since, step_s)
    found, table = history.table(since, step_s)
    assert found == step_s and table.times == tuple(row.at for row in rows)
    for columns, kept in (
        (table.average, [row.average for row in rows]),
        (table.peak, [row.peak for row in rows]),
    ):
        assert set(columns) == {name for row in kept for name in row}
        assert all(columns[name] == tuple(row.get(name) for row in kept) for name in columns)
    assert table.average["new"][0] is None and table.average["new"][-1] == pytest.approx(2.0, rel=0.001)
    _, some = history.table(since, step_s, {"cpu", "throttled", "none"}, ())
    assert set(some.average) == {"cpu"} and some.average["cpu"] == table.average["cpu"]
    assert some.peak == {} and some.times == table.times


def test_longer_steps_are_merged() -> None:
    history, now = _long_ago(vcpus=1)
    step_s, rows = history.rows(now - DAY_S, 3600)
    assert step_s == 3600 and len(rows) in (24, 25)
    fine = history.rows(now - 3 * 3600, 60)[1]
    hour = [row for row in fine if row.at // 3600 == rows[-2].at // 3600]
    assert rows[-2].peak["vcpu0"] == max(row.peak["vcpu0"] for row in hour)
    assert rows[-2].average["vcpu0"] == pytest.approx(0.5, abs=0.05)
    assert merge([], 60) == []


def test_a_vcpu_that_was_unplugged_is_forgotten_after_a_day() -> None:
    history, now = History(), START
    for _ in range(10):
        now += 60.0
        history.add(now, 60.0, {"cpu": 1.0, "vcpu7": 0.5})
    for _ in range(1700):
        now += 60.0
        history.add(now, 60.0, {"cpu": 1.0})
    _, rows = history.rows(0, 60)
    assert all("vcpu7" not in row.average for row in rows)
    assert "vcpu7" not in history.coarse._averages


def test_kept_in_a_file(tmp_path: Path) -> None:
    history, now = _long_ago(vcpus=1)
    history.finish()
    history.save(tmp_path / "history")
    assert [entry.name for entry in tmp_path.iterdir()] == ["history"]
    assert (tmp_path / "history").stat().st_size < 120_000
    again = histories.load(tmp_path / "history")
    assert again.rows(now - 3600, 60) == history.rows(now - 3600, 60)
    assert histories.load(tmp_path / "none").rows(0, 60) == (60, [])


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\xff" * 4000])
def test_a_damaged_file_is_told_and_counts_for_nothing(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "history"
    path.write_bytes(data)
    with caplog.at_level("WARNING", logger="innkeeper.sampling"):
        assert histories.load(path).rows(0, 60) == (60, [])
    assert str(path) in caplog.text


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    history, _ = _long_ago(vcpus=1)
    history.save(tmp_path / "history")
    before = (tmp_path / "history").read_bytes()
    (tmp_path / "history.part").mkdir()
    with pytest.raises(OSError):
        history.save(tmp_path / "history")
    assert (tmp_path / "history").read_bytes() == before
