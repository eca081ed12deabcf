"""Merging of equal pages: when, how hard, who may, and that everything is put back."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from innkeeper.agent.doctor import DoctorContext, examine, fix
from innkeeper.agent.tune.ksm import (
    MAX_PAGES,
    MIN_PAGES,
    SLEEP_MS,
    Seen,
    Tuning,
    step,
)
from innkeeper.agent.tune.merging import Merging, see
from innkeeper.daemon.host import LocalHost
from innkeeper.daemon.settings import Settings
from innkeeper.drivers.ksm import Claim, Ksm, put_back
from innkeeper.drivers.run import SystemRunner
from innkeeper.errors import BadRequest, Failed, NoCapacity, Unsupported
from innkeeper.spec.overcommit import HostSettings, KsmMode
from innkeeper.units import GiB, MiB

DEFAULTS = {
    "run": 0,
    "pages_to_scan": 100,
    "sleep_millisecs": 20,
    "pages_sharing": 0,
    "pages_shared": 0,
    "full_scans": 0,
    "general_profit": 0,
}


def seen(available: float = 0.5, **more: float) -> Seen:
    fields = {"total_bytes": 16 * GiB, "available_bytes": int(available * 16 * GiB), "mergeable_bytes": GiB}
    return Seen(**{**fields, **more})  # type: ignore[arg-type]


class Kernel(Ksm):
    """A kernel in a directory, which refuses what it is told to refuse."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.directory = root / "sys/kernel/mm/ksm"
        self.directory.mkdir(parents=True)
        for name, value in DEFAULTS.items():
            (self.directory / name).write_text(f"{value}\n")
        (self.directory / "advisor_mode").write_text("[none] scan-time\n")
        ksmd = root / "proc/36"
        ksmd.mkdir(parents=True)
        (ksmd / "comm").write_text("ksmd\n")
        (ksmd / "schedstat").write_text("1000000000 0 5\n")
        self.refuses: Exception | None = None

    def get(self, name: str) -> int:
        return int((self.directory / name).read_text())

    def write(self, knob: str, value: int) -> None:
        if self.refuses is not None:
            raise self.refuses
        super().write(knob, value)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


class Rig:
    """A daemon's part of it, over a kernel that may have others."""

    def __init__(self, kernel: Kernel, claim: Path) -> None:
        self.kernel, self.clock = kernel, Clock()
        self.mode: KsmMode = "auto"
        self.seen = seen()
        self.claim = Claim(claim)
        self.merging = Merging(kernel, self.claim, self.clock, lambda: self.mode, lambda: self.seen)

    def look(self, **given: float) -> None:
        self.seen = seen(**given)
        asyncio.run(self.merging.look())

    def close(self) -> None:
        asyncio.run(self.merging.close())

    @property
    def knobs(self) -> tuple[int, int, int]:
        return tuple(self.kernel.knobs().values())  # type: ignore[return-value]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(Kernel(tmp_path / "host"), tmp_path / "claim")


# -- the step function -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "mode", "on"),
    [
        (False, seen(0.5), "auto", False),
        (False, seen(0.19), "auto", True),
        (False, seen(0.25), "auto", False),
        (True, seen(0.25), "auto", True),  # between the two marks it stays as it is
        (True, seen(0.31), "auto", False),
        (False, seen(0.5, memory_pressure=0.06), "auto", True),
        (False, seen(0.1, mergeable_bytes=0), "auto", False),
        (False, seen(0.9), "always", True),
        (False, seen(0.9, mergeable_bytes=0), "always", False),
        (True, seen(0.01), "never", False),
    ],
)
def test_when(before: bool, now: Seen, mode: KsmMode, on: bool) -> None:
    after = step(Tuning(on=before), now, mode)
    assert after.on is on and after.why


def test_harder_while_memory_is_short_and_slower_afterwards() -> None:
    tuning, pages = Tuning(), []
    for _ in range(40):
        tuning = step(tuning, seen(0.1), "auto")
        pages.append(tuning.pages)
    assert pages[0] == MIN_PAGES + 50 and pages == sorted(pages) and pages[-1] == MAX_PAGES
    assert step(tuning, seen(0.1, cpu_pressure=0.5), "auto").pages == MAX_PAGES // 2
    slower = step(tuning, seen(0.25), "auto")
    assert slower.on and slower.pages < MAX_PAGES
    assert step(Tuning(), seen(0.9), "always").pages == MIN_PAGES


def test_large_hosts_sleep_less() -> None:
    assert step(Tuning(), seen(0.1, total_bytes=4 * GiB, available_bytes=1), "auto").sleep_ms == 40
    assert step(Tuning(), seen(0.1, total_bytes=256 * GiB), "auto").sleep_ms == SLEEP_MS


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=60), st.sampled_from(["auto", "always", "never"]))
def test_whatever_happens_it_stays_within_bounds(shares: list[float], mode: KsmMode) -> None:
    tuning = Tuning()
    for share in shares:
        tuning = step(tuning, seen(share), mode)
        assert MIN_PAGES <= tuning.pages <= MAX_PAGES and tuning.sleep_ms >= SLEEP_MS
        assert not (mode == "never" and tuning.on) and not (mode == "auto" and tuning.on and share > 0.3)


# -- over a kernel -----------------------------------------------------------------------------------


def test_on_when_pressed_and_everything_put_back(rig: Rig) -> None:
    rig.look()
    assert rig.knobs == (0, 100, 20) and rig.claim.former() is None
    rig.look(available=0.1)
    assert rig.knobs == (1, MIN_PAGES + 50, 10)
    report = rig.merging.report()
    assert report is not None and (report.running, report.by) == (True, "innkeeper")
    rig.look(available=0.6)
    assert rig.knobs == (0, 100, 20) and rig.claim.former() is None
    rig.look(available=0.1)
    rig.close()
    assert rig.knobs == (0, 100, 20) and rig.claim.former() is None


def test_what_ksmd_costs(rig: Rig) -> None:
    rig.look(available=0.1)
    (rig.kernel._root / "proc/36/schedstat").write_text("1500000000 0 9\n")
    (rig.kernel.directory / "pages_sharing").write_text("256\n")
    (rig.kernel.directory / "general_profit").write_text("-4096\n")
    rig.clock.now += 10
    rig.look(available=0.1)
    report = rig.merging.report()
    assert report is not None
    assert (report.cpu, report.saved_bytes, report.profit_bytes) == (0.05, MiB, -4096)


def test_a_ksmd_that_cannot_be_seen_is_looked_for_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container: to read the name of every process, every ten seconds, would take more than ksmd."""
    shutil.rmtree(rig.kernel._root / "proc/36")
    looks = []
    plain = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: (looks.append(path), plain(path))[1])
    assert [rig.kernel.cpu_seconds() for _ in range(3)] == [None, None, None] and len(looks) == 1
    assert Kernel(rig.kernel._root / "other").cpu_seconds() == 1.0


def test_what_somebody_else_runs_is_left_alone(rig: Rig) -> None:
    (rig.kernel.directory / "run").write_text("1\n")
    rig.look(available=0.1)
    rig.look(available=0.9)
    rig.close()
    assert rig.knobs == (1, 100, 20)
    report = rig.merging.report()
    assert report is not None and report.by == "others"


def test_two_daemons_on_one_host(rig: Rig) -> None:
    other = Rig.__new__(Rig)
    other.kernel, other.clock, other.mode, other.seen = rig.kernel, Clock(), "auto", seen()
    other.claim = Claim(rig.claim._path)
    other.merging = Merging(rig.kernel, other.claim, other.clock, lambda: other.mode, lambda: other.seen)
    rig.look(available=0.1)
    tuned = rig.knobs
    other.look(available=0.1)
    assert not other.claim.held and rig.knobs == tuned
    other.look(available=0.9)
    other.close()
    assert rig.knobs == tuned, "only who has it puts it back"
    rig.close()
    assert rig.knobs == (0, 100, 20)


def test_a_daemon_that_was_killed_left_it_on(rig: Rig) -> None:
    """The next one goes on from there, or puts it back; the doctor does, where there is none."""
    rig.look(available=0.1)
    rig.claim.let_go()  # as the kernel does when the process ends
    following = Rig.__new__(Rig)
    following.kernel, following.clock, following.mode, following.seen = rig.kernel, Clock(), "auto", seen()
    following.claim = Claim(rig.claim._path)
    following.merging = Merging(
        rig.kernel, following.claim, following.clock, lambda: following.mode, lambda: following.seen
    )
    assert following.claim.abandoned()
    following.look(available=0.15)
    assert following.claim.held and rig.knobs[0] == 1
    following.look(available=0.9)
    assert rig.knobs == (0, 100, 20)


def test_the_doctor_finds_what_was_left_behind(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    rig = Rig(Kernel(tmp_path), tmp_path / "run/innkeeper-ksm.json")
    context = DoctorContext(SystemRunner(), tmp_path, root=tmp_path, uid=0)

    def verdict() -> tuple[str, bool]:
        (found,) = asyncio.run(examine(context, only=["ksm"]))
        return found.verdict, found.fixable

    assert verdict() == ("info", False)
    rig.look(available=0.1)
    assert verdict() == ("ok", False), "its daemon is there"
    rig.claim.let_go()
    assert verdict() == ("warn", True)
    (done,) = asyncio.run(fix(asyncio.run(examine(context, only=["ksm"])), context))
    assert done.done
    assert rig.knobs == (0, 100, 20)
    assert verdict() == ("info", False)


def test_a_kernel_that_chooses_the_speed_itself(rig: Rig) -> None:
    """With advisor_mode=scan-time the kernel refuses pages_to_scan (mm/ksm.c, pages_to_scan_store)."""
    (rig.kernel.directory / "advisor_mode").write_text("none [scan-time]\n")
    rig.look(available=0.1)
    assert rig.knobs == (1, 100, 10)
    rig.close()
    assert rig.knobs == (0, 100, 20)


def test_without_the_right_to(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.kernel.refuses = Unsupported("Only root may")
    rig.look(available=0.1)
    rig.look(available=0.1)
    report = rig.merging.report()
    assert report is not None and not report.running and "Only root" in report.why
    assert caplog.text.count("Only root") == 1
    rig.kernel.refuses = None
    rig.look(available=0.1)
    assert rig.knobs[0] == 1
    rig.kernel.refuses = Failed("disk on fire")
    rig.close()
    assert Claim(rig.claim._path).abandoned(), "noted until it is put back"


def test_a_kernel_without_it(tmp_path: Path) -> None:
    bare = Ksm(tmp_path)
    assert bare.read() is None and bare.cpu_seconds() is None
    with pytest.raises(Unsupported, match="merges no pages"):
        bare.knobs()
    merging = Merging(bare, Claim(tmp_path / "claim"), Clock(), lambda: "always", lambda: seen(0.1))
    asyncio.run(merging.look())
    assert merging.report() is None
    assert put_back(bare, Claim(tmp_path / "claim")) is False


def test_a_claim_that_cannot_be_written(tmp_path: Path) -> None:
    assert Claim(tmp_path / "none" / "claim").take({"run": 0}) is False
    (tmp_path / "claim").write_text("{half")
    assert Claim(tmp_path / "claim").former() is None
    assert Claim(tmp_path / "claim").take(dict.fromkeys(("run", "pages_to_scan", "sleep_millisecs"), 1))


def test_a_daemon_that_is_not_roots_says_so(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    rig.look(available=0.1)
    told = rig.merging.report()
    assert told is not None and "Only root may change how this host merges" in told.why
    assert rig.knobs == (0, 100, 20) and not rig.claim._path.exists()
    host = LocalHost(tmp_path)
    settings = Settings(host, tmp_path)
    settings.merging = rig.merging
    with pytest.raises(Unsupported, match="Only root may"):
        asyncio.run(settings.change({"ksm": "always"}))
    assert host.settings.ksm == "auto"
    asyncio.run(settings.change({"ksm": "never"}))  # its VMs' pages are left out, which anybody may say
    asyncio.run(settings.change({"ksm": "auto"}))
    rig.kernel.write("run", 1)  # where somebody else has it run, pages are merged
    asyncio.run(settings.change({"ksm": "always"}))


# -- the host's settings -----------------------------------------------------------------------------


def test_settings_are_kept_and_never_unmerges(rig: Rig, tmp_path: Path) -> None:
    host = LocalHost(tmp_path)
    settings = Settings(host, tmp_path)
    settings.load()
    assert host.settings == HostSettings()
    settings.merging = rig.merging
    rig.mode = "auto"
    rig.look(available=0.1)
    (rig.kernel.directory / "pages_sharing").write_text("4096\n")

    async def scenario() -> None:
        rig.seen = seen(available=0.0005)
        with pytest.raises(NoCapacity, match=r"would take 16\.0 MiB more, and 8\.2 MiB is available"):
            await settings.change({"ksm": "never"})
        assert host.settings.ksm == "auto"
        rig.seen, rig.mode = seen(), "never"
        await settings.change({"ksm": "never", "overcommit": {"memory": 1.5}})
        await settings.change({"overcommit": {"cpu": 8}})
        with pytest.raises(BadRequest, match=r"overcommit\.memory"):
            await settings.change({"overcommit": {"memory": -1}})

    asyncio.run(scenario())
    assert rig.knobs == (0, 100, 20)
    again = LocalHost(tmp_path)
    Settings(again, tmp_path).load()
    assert again.settings == host.settings
    assert again.settings.model_dump() == {
        "ksm": "never",
        "overcommit": {"memory": 1.5, "cpu": 8.0},
        "vms_memory": None,
    }


def test_settings_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    host = LocalHost(tmp_path)
    for text in ("", "[]", json.dumps({"ksm": "perhaps"})):
        (tmp_path / "settings.json").write_text(text)
        Settings(host, tmp_path).load()
        assert host.settings == HostSettings()
    (tmp_path / "file").write_text("")
    with pytest.raises(Failed, match="Cannot write"):
        asyncio.run(Settings(host, tmp_path / "file").change({"ksm": "always"}))
    assert host.settings == HostSettings()


def test_what_is_seen_of_a_host(tmp_path: Path) -> None:
    (tmp_path / "proc/pressure").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 2048 kB\nMemAvailable: 1024 kB\n")
    (tmp_path / "proc/pressure/memory").write_text("some avg10=7.25 avg60=0 avg300=0 total=1\n")

    class Ctx:
        running: dict[str, object] = {}  # noqa: RUF012

    found = see(Ctx(), tmp_path)  # type: ignore[arg-type]
    assert found == Seen(2 * MiB, MiB, 0, memory_pressure=0.0725)
