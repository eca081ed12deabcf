"""Advice that is applied: on a simulated clock, with guests that take it well, badly, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from advice_play import NOW
from advice_play import trial as made_trial
from api_harness import HOST, TINY, UID, FakeLive, record, serve

from fakes.settler import Settler
from helpers import FakeClock, run
from innkeeper.agent.sampling.history import History as Kept
from innkeeper.api.admit import Admission
from innkeeper.api.trials import Trials
from innkeeper.api.verbs.advise import Options, Sources, advise_all, advise_one
from innkeeper.control.advice import thresholds as T
from innkeeper.control.advice.trial import Look, Verdict, judge, worse
from innkeeper.errors import Conflict, Failed, GuestTimeout, NotFound, StoreFull, WrongState
from innkeeper.spec.advice import Trial, TrialsRecord, TrialState
from innkeeper.spec.instance import InstanceRecord, InstanceStatus, Power, State
from innkeeper.spec.memory import MemoryNow
from innkeeper.spec.metrics import History, HostMetrics, Metrics
from innkeeper.store import keys
from innkeeper.store.faulty import FaultyStore
from innkeeper.store.kv import Put
from innkeeper.store.memory import MemoryStore
from innkeeper.store.repo import Repo
from innkeeper.telemetry import lasting
from innkeeper.units import GiB, MiB

WINDOW = Options(120.0, 60.0)


@dataclass
class Load:
    """What a guest would do: so many threads, each all the time."""

    threads: float = 1.0
    wait: float = 0.0
    more: dict[str, float] = field(default_factory=dict)


class Agent(Settler):
    """Takes vCPUs and memory up as well. `once`: fails the next change only."""

    once: Exception | None = None

    async def settle(self, record: InstanceRecord) -> None:
        if isinstance(self.once, Failed) and record.wanted.change:
            self.fail[record.name], self.once = self.once, None
            try:
                await super().settle(record)
            finally:
                del self.fail[record.name]
            return
        await super().settle(record)

    def _done(self, record: InstanceRecord, status: InstanceStatus) -> InstanceStatus:
        on = record.wanted.power is Power.ON
        size = record.spec.memory.size
        memory = MemoryNow(size=size, start=128 * MiB, most=1024 * MiB, step=128 * MiB)
        update = {
            "cpus": record.spec.cpu.count if on else 0, "cpus_max": 8, "agent": on,
            "memory": memory if on else MemoryNow(), "started_at": NOW - 86400,
        }  # fmt: skip
        return super()._done(record, status).model_copy(update=update)


class Play:
    """One VM `web` whose readings follow its load and what it has."""

    def __init__(self, directory: Path) -> None:
        self.clock = FakeClock(time=NOW)
        self.store = FaultyStore(MemoryStore())
        self.repo = Repo(self.store)
        self.live = FakeLive(directory)
        self.live.files["/proc/loadavg"] = b""  # says nothing
        self.kept = Kept()
        self.load = Load()
        self.agent = Agent(self.store)
        self.trials = self.daemon()

    def daemon(self) -> Trials:
        """Another one, which knows only what is in the store."""
        return Trials(self.sources, Admission(self.repo))

    @property
    def sources(self) -> Sources:
        return Sources(self.repo, self, self.live, self.clock)

    async def metrics(self, max_age_s: float | None = None) -> Metrics:
        host = HostMetrics(
            name="h1", at=NOW, cpus=2, load=(0, 0, 0), memory_bytes=8 * GiB,
            memory_available_bytes=4 * GiB, swap_bytes=0, swap_free_bytes=0,
        )  # fmt: skip
        return Metrics(host=host, instances=())

    def history(
        self,
        name: str,
        since: float,
        resolution_s: float,
        average: Collection[str] | None = None,
        peak: Collection[str] | None = None,
    ) -> History:
        step_s, kept = self.kept.table(since, resolution_s, average, peak)
        return History(name=name, step_s=step_s, times=kept.times, average=kept.average, peak=kept.peak)

    async def pass_(self, seconds: float, *, readings: bool = True) -> None:
        """Time goes by; while the VM runs it is read every 5 s."""
        for _ in range(round(seconds / 5)):
            self.clock.advance(5.0)
            status = (await self.repo.view("web")).status
            if readings and status.state is State.RUNNING:
                used = min(self.load.threads, float(status.cpus))
                values: dict[str, float | None] = {
                    "cpu": used, "demand": used, "busiest": min(1.0, used),
                    "wait": self.load.wait * status.cpus, "given_cpus": float(status.cpus),
                    "given_memory": float(status.memory.size), **self.load.more,
                }  # fmt: skip
                self.kept.add(self.clock.time(), 5.0, values)

    async def spec(self) -> Any:
        return (await self.repo.view("web")).record.spec

    async def last(self) -> Trial:
        return (await self.repo.trials.of("web", UID)).trials[-1]


@contextlib.asynccontextmanager
async def play(directory: Path, cpus: int = 2, **load: Any) -> AsyncIterator[Play]:
    one = Play(directory)
    one.load = Load(**load)
    await one.repo.put_host(HOST)
    await one.repo.put_image(TINY)
    async with one.agent:
        made = record("web", power=Power.ON, epoch=1)
        spec = made.spec.model_copy(
            update={"cpu": made.spec.cpu.model_copy(update={"count": cpus}),
                    "memory": made.spec.memory.model_copy(update={"size": 512 * MiB, "max": 1024 * MiB})}
        )  # fmt: skip
        await one.repo.create_instance(made.model_copy(update={"spec": spec}))
        while (await one.repo.view("web")).status.state is not State.RUNNING:
            await asyncio.sleep(0)
        await one.pass_(130)
        yield one


def test_one_that_is_good_is_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with play(tmp_path) as one:
            found = await one.trials.apply("web", WINDOW)
            trial = found.trials[-1]
            assert trial.state is TrialState.WATCHING and trial.window_s == 120
            assert (trial.change, trial.before) == ({"cpu.count": 1}, {"cpu.count": 2})
            assert trial.measured_before["demand"] == pytest.approx(1.0, rel=0.01)
            assert (await one.spec()).cpu.count == 1
            await one.pass_(60)
            assert 0 < (await one.trials.step() or 0) <= 60
            assert (await one.last()).state is TrialState.WATCHING
            await one.pass_(60)
            assert await one.trials.step() is None
            trial = await one.last()
            assert trial.state is TrialState.KEPT and "CPUs 1.00 before, 1.00 now" in trial.outcome
            assert trial.ended_at == one.clock.time() and trial.measured_after["demand"] > 0.99
            assert (await one.spec()).cpu.count == 1
            # One thread fills its vCPU now, and it is known that another one would not help.
            said = await advise_one(one.sources, "web", WINDOW)
            assert said.advice == () and said.withheld[0].reason == "parallelism"

    run(scenario())


def test_one_that_is_worse_is_taken_back_and_not_advised_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with play(tmp_path, threads=0.6) as one:
            found = await one.trials.apply("web", WINDOW, watch_s=60)
            assert found.advice[0].reason == "idle" and (await one.spec()).cpu.count == 1
            one.load.threads = 2.0
            await one.pass_(65)
            assert await one.trials.step() is None
            trial = await one.last()
            assert trial.state is TrialState.REVERTED
            assert "its load rose to all of its vCPUs: 0.60 CPUs before, 1.00 of 1 now" in trial.outcome
            assert (await one.spec()).cpu.count == 2
            assert (await one.repo.view("web")).status.cpus == 2
            one.load.threads = 0.6
            await one.pass_(200)
            said = await advise_one(one.sources, "web", WINDOW)
            assert said.advice == () and said.withheld[0].reason == "tried"
            assert await one.trials.apply("web", WINDOW) == said  # nothing to apply, nothing done

    run(scenario())


def test_a_guest_that_queues_shows_it_where_the_host_cannot(tmp_path: Path) -> None:
    """One thread or six on one vCPU: for the host it is one busy vCPU."""

    async def scenario() -> None:
        async with play(tmp_path) as one:
            one.live.files["/proc/loadavg"] = b"1.02 1.00 0.90 1/60 123\n"
            await one.trials.apply("web", WINDOW, watch_s=60)
            one.live.files["/proc/loadavg"] = b"4.50 2.00 1.00 7/66 130\n"
            await one.pass_(65)
            await one.trials.step()
            trial = await one.last()
            assert trial.state is TrialState.REVERTED and "4.5 on 1 now" in trial.outcome

    run(scenario())


@pytest.mark.parametrize("answer", [b"", b"x y", b"-1 -1", b"nan 0", b"9" * 5000])
def test_a_guest_that_talks_nonsense_is_not_heard(tmp_path: Path, answer: bytes) -> None:
    async def scenario() -> None:
        async with play(tmp_path, threads=2.0) as one:
            one.live.files["/proc/loadavg"] = answer
            said = await advise_one(one.sources, "web", WINDOW)
            assert said.withheld[0].reason == "host"  # of 2 CPUs; it has 2 vCPUs

    run(scenario())


def test_a_guest_that_refuses_leaves_all_as_it_was(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with play(tmp_path) as one:
            one.agent.once = GuestTimeout("web did not take its vCPUs out of use within 10 s", hint="wait")
            with pytest.raises(GuestTimeout, match="did not take"):
                await one.trials.apply("web", WINDOW)
            trial = await one.last()
            assert trial.state is TrialState.REFUSED and "did not take its vCPUs" in trial.outcome
            assert (await one.spec()).cpu.count == 2
            said = await advise_one(one.sources, "web", WINDOW)
            assert said.withheld[0].reason == "tried" and "refused" in said.withheld[0].what

    run(scenario())


def test_one_that_cannot_be_put_back_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with play(tmp_path, threads=0.6) as one:
            await one.trials.apply("web", WINDOW, watch_s=60)
            one.load.threads = 2.0
            await one.pass_(65)
            one.agent.once = GuestTimeout("its guest does not use its vCPUs again")
            await one.trials.step()
            trial = await one.last()
            assert trial.state is TrialState.STUCK and "could not be put back: its guest" in trial.outcome
            assert await one.trials.step() is None

    run(scenario())


def test_a_daemon_that_is_killed_while_it_changes_something_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with play(tmp_path) as one:
            one.agent.hang.add("web")
            killed = asyncio.ensure_future(one.trials.apply("web", WINDOW))
            while (await one.spec()).cpu.count != 1:
                await asyncio.sleep(0)
            killed.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await killed
            assert (await one.last()).state is TrialState.APPLYING
            one.agent.hang.clear()
            asyncio.get_running_loop().create_task(one.agent.settle((await one.repo.view("web")).record))
            next_one = one.daemon()
            assert await next_one.step() == 120
            assert (await one.last()).state is TrialState.WATCHING
            await one.pass_(125)
            await one.daemon().step()  # and once more
            assert (await one.last()).state is TrialState.KEPT

    run(scenario())


def test_a_daemon_that_is_killed_while_it_takes_something_back_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with play(tmp_path, cpus=1) as one:
            begun = made_trial(state=TrialState.REVERTING, outcome="it lacks vCPUs")
            await one.repo.trials.put(TrialsRecord(name="web", uid=UID, trials=(begun,)))
            assert await one.daemon().step() is None
            assert (await one.spec()).cpu.count == 2
            assert (await one.last()).outcome == "worse, and put back: it lacks vCPUs"

    run(scenario())


def test_one_that_ended_while_it_was_changed_keeps_nothing_of_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with play(tmp_path, cpus=1) as one:
            begun = made_trial(state=TrialState.APPLYING, changed_at=0.0)
            await one.repo.trials.put(TrialsRecord(name="web", uid=UID, trials=(begun,)))
            await one.agent.end("web")
            await one.daemon().step()
            assert (await one.last()).state is TrialState.REFUSED and (await one.spec()).cpu.count == 2

    run(scenario())


def test_a_full_store_loses_no_trial(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with play(tmp_path, threads=0.6) as one:
            await one.trials.apply("web", WINDOW, watch_s=60)
            one.load.threads = 2.0
            await one.pass_(65)
            one.store.fail_next_txn = StoreFull("no space left")
            with pytest.raises(StoreFull):
                await one.trials.step()
            assert (await one.last()).state is TrialState.WATCHING
            await one.trials.step()
            assert (await one.last()).state is TrialState.REVERTED

    run(scenario())


def test_who_changes_it_meanwhile_has_the_last_word(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with play(tmp_path) as one:
            await one.trials.apply("web", WINDOW)
            await one.trials._set("web", {"cpu.count": 3})
            assert await one.trials.step() is None
            trial = await one.last()
            assert trial.state is TrialState.UNJUDGED and "cpu.count was changed by somebody" in trial.outcome
            assert (await one.spec()).cpu.count == 3

    run(scenario())


def test_what_somebody_else_changed_meanwhile_may_not_go_with_what_was_before(tmp_path: Path) -> None:
    """The trial is stuck then, and says so; all others go on."""

    async def scenario() -> None:
        async with play(tmp_path, threads=0.6) as one:
            await one.trials.apply("web", WINDOW, watch_s=60)
            one.load.threads = 2.0
            trial = (await one.last()).model_copy(
                update={
                    "change": {"qos.cpu.limit": "1.5"},
                    "before": {"qos.cpu.limit": "1"},
                    "reason": "limited",
                }
            )
            await one.trials._set(
                "web", {"cpu.count": 2, "qos.cpu.limit": "1.5", "qos.cpu.reservation": "1.2"}
            )
            await one.repo.trials.put(TrialsRecord(name="web", uid=UID, trials=(trial,)))
            one.load.wait = 0.5
            await one.pass_(65)
            assert await one.trials.step() is None
            trial = await one.last()
            assert trial.state is TrialState.STUCK
            assert "web cannot have qos.cpu.limit=1 as it is now: a reservation of 1.2 cores" in trial.outcome
            assert (await one.spec()).qos.cpu.limit == 1500

    run(scenario())


def test_what_is_set_while_a_trial_changes_something_else_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with play(tmp_path) as one:
            read, done = one.repo.instance, False

            async def instance(name: str) -> Any:
                nonlocal done
                found = await read(name)
                if not done:  # between what the trial reads and what it writes
                    done = True
                    labels = found.value.spec.model_copy(update={"labels": {"owner": "anna"}})
                    await one.repo.change_instance(
                        name, lambda record, _status: record.model_copy(update={"spec": labels})
                    )
                return found

            monkeypatch.setattr(one.repo, "instance", instance)
            await one.trials._set("web", {"cpu.count": 1})
            spec = await one.spec()
            assert (spec.cpu.count, spec.labels) == (1, {"owner": "anna"})

    run(scenario())


def test_a_disk_that_is_taken_away_meanwhile_is_not_judged(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with play(tmp_path) as one:
            path = "disks.0.qos.total_ops"
            begun = made_trial(
                kind="disk", reason="throttled", change={path: "200/s"}, before={path: "100/s"}
            )
            await one.repo.trials.put(TrialsRecord(name="web", uid=UID, trials=(begun,)))
            assert await one.trials.step() is None
            trial = await one.last()
            assert trial.state is TrialState.UNJUDGED and f"{path} was changed by somebody" in trial.outcome

    run(scenario())


def test_it_is_judged_by_what_is_written_down(tmp_path: Path) -> None:
    """The guest is asked once; another answer a moment later is of another moment."""

    async def scenario() -> None:
        async with play(tmp_path) as one:
            one.live.files["/proc/loadavg"] = b"1.02 1.00 0.90 1/60 123\n"
            await one.trials.apply("web", WINDOW, watch_s=60)
            read, asked = one.live.read_file, []

            async def counted(name: str, path: str) -> AsyncIterator[bytes]:
                asked.append(path)
                return await read(name, path)

            one.live.read_file = counted  # type: ignore[method-assign]
            await one.pass_(65)
            await one.trials.step()
            assert (await one.last()).measured_after["runnable"] == 1.02 and len(asked) == 1

    run(scenario())


def test_one_that_ends_or_is_not_read_is_not_judged(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with play(tmp_path) as one:
            await one.trials.apply("web", WINDOW)
            await one.pass_(125, readings=False)
            assert await one.trials.step() == 5  # perhaps there are some soon
            await one.pass_(125, readings=False)
            assert await one.trials.step() is None
            assert "too few readings" in (await one.last()).outcome
        async with play(tmp_path) as one:
            await one.trials.apply("web", WINDOW)
            await one.agent.end("web")
            assert await one.trials.step() is None
            trial = await one.last()
            assert trial.state is TrialState.UNJUDGED and (await one.spec()).cpu.count == 1

    run(scenario())


def test_refusals(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with play(tmp_path) as one:
            await one.trials.apply("web", WINDOW)
            with pytest.raises(Conflict, match="being watched after a change") as caught:
                await one.trials.apply("web", WINDOW)
            assert "judged in 120 s" in caught.value.hint
            with pytest.raises(NotFound, match="did you mean web"):
                await one.trials.apply("wed", WINDOW)
            await one.agent.end("web")
            for asked in (one.trials.apply("web", WINDOW), advise_one(one.sources, "web", WINDOW)):
                with pytest.raises(WrongState, match="does not run"):
                    await asked
            assert (await advise_all(one.sources, WINDOW)).instances == ()

    run(scenario())


def test_nothing_is_applied_that_waits_for_a_restart_or_is_of_another_kind(tmp_path: Path) -> None:
    async def scenario() -> None:
        more = {"working_set": 500.0 * MiB}
        async with play(tmp_path, more=more) as one:
            said = await one.trials.apply("web", WINDOW, kind="disk")
            assert said.trials == () and [advice.kind for advice in said.advice] == ["memory", "cpu"]
            said = await one.trials.apply("web", WINDOW, kind="cpu")
            assert said.trials[-1].kind == "cpu"

    run(scenario())


def test_an_instance_that_is_removed_takes_its_trials_with_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with play(tmp_path) as one:
            await one.trials.apply("web", WINDOW)
            await one.repo.remove_instance("web", UID)
            assert await one.trials.step() is None and await one.repo.trials.all() == []
            # Written too late, of an instance that is another one now: counts for nothing.
            await one.repo.create_instance(record("web").model_copy(update={"uid": UID[:-1] + "e"}))
            await one.repo.trials.put(TrialsRecord(name="web", uid=UID, trials=(made_trial(),)))
            assert await one.trials.step() is None
            assert (await one.repo.trials.of("web", UID[:-1] + "e")).trials == ()

    run(scenario())


def test_a_damaged_record_of_trials_hides_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with play(tmp_path) as one:
            await one.store.txn([], [Put(keys.trials("web"), b"{damaged")])
            assert [found.name for found in (await advise_all(one.sources, WINDOW)).instances] == ["web"]
            assert await one.trials.step() is None
            assert (await one.trials.apply("web", WINDOW)).trials[-1].state is TrialState.WATCHING

    run(scenario())


def test_only_the_last_trials_are_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with play(tmp_path) as one:
            old = tuple(
                made_trial(id=f"{n:016x}", state=TrialState.UNJUDGED, ended_at=NOW)
                for n in range(T.KEPT_TRIALS)
            )
            await one.repo.trials.put(TrialsRecord(name="web", uid=UID, trials=old))
            found = await one.trials.apply("web", WINDOW)
            assert len(found.trials) == T.KEPT_TRIALS and found.trials[0].id == f"{1:016x}"

    run(scenario())


def test_the_loop_sleeps_until_one_is_due(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with play(tmp_path) as one:
            loop = asyncio.create_task(one.trials.run())
            await asyncio.sleep(0.01)
            assert one.clock.sleeping == []  # nothing to do, nothing woken for
            await one.trials.apply("web", WINDOW)
            while not one.clock.sleeping:
                await asyncio.sleep(0)
            assert one.clock.sleeping[0] - one.clock.monotonic() == pytest.approx(120, abs=1)
            await one.pass_(125)
            while (await one.last()).is_open:
                await asyncio.sleep(0)
            assert (await one.last()).state is TrialState.KEPT
            loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loop

    run(scenario())


# -- judging -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "before", "after", "expected"),
    [
        # fewer vCPUs, of two one
        ("single-threaded", {"demand": 1.0}, {"demand": 1.0}, ""),
        ("single-threaded", {"demand": 0.1}, {"demand": 1.0}, ""),
        ("single-threaded", {"demand": 1.2}, {"demand": 1.0}, "lacks vCPUs"),
        ("single-threaded", {"demand": 1.1}, {"demand": 1.0}, ""),  # 9 %
        ("single-threaded", {"demand": 1.0, "runnable": 1.0}, {"demand": 1.0, "runnable": 1.25}, ""),
        (
            "single-threaded",
            {"demand": 1.0, "runnable": 0.9},
            {"demand": 1.0, "runnable": 1.3},
            "tasks queue",
        ),
        ("idle", {"demand": 0.3}, {"demand": 0.89}, ""),
        ("idle", {"demand": 0.3}, {"demand": 0.95}, "rose to all"),
        ("idle", {"demand": 0.3}, {}, ""),
        ("idle", {}, {"demand": 1.0}, ""),
        # more vCPUs
        ("busy", {"wait": 0.05}, {"wait": 0.14}, ""),
        ("busy", {"wait": 0.05}, {"wait": 0.16}, "5 % before, 16 % now"),
        ("busy", {"wait": 0.5}, {"wait": 0.65}, ""),  # a busy host is a busy host
        # memory
        ("roomy", {"guest_swap_in": 0.0}, {"guest_swap_in": 300 * 1024.0}, "swaps in"),
        ("roomy", {"disk_read": 5e6}, {"disk_read": 7e6}, ""),
        ("roomy", {"disk_read": 1e6}, {"disk_read": 3e6}, "reads again"),
        ("roomy", {"major_faults": 1.0}, {"major_faults": 80.0}, "swapped out"),
        ("roomy", {}, {"refaults": 60.0}, "reads its memory back"),
        ("roomy", {"pressure_memory": 0.01}, {"pressure_memory": 0.08}, "waits for memory"),
        ("full", {"guest_swap_in": 0.0}, {"guest_swap_in": 300 * 1024.0}, ""),
        ("limited", {"wait": 0.3}, {"wait": 0.5}, "wait for the host"),
        ("throttled", {"pressure_io": 0.1}, {"pressure_io": 0.3}, "its disks"),
        ("remote", {"wait": 0.0}, {"wait": 0.2}, "wait for the host"),
        ("a reason of a later version", {"wait": 0.0}, {"wait": 1.0}, ""),
    ],
)
def test_worse(reason: str, before: dict[str, float], after: dict[str, float], expected: str) -> None:
    said = worse(made_trial(reason=reason, measured_before=before), after)
    assert bool(said) == bool(expected) and expected in said


def test_judging_waits_for_its_time() -> None:
    trial = made_trial()
    look = Look(trial.judged_at - 1, True, 1, {"cpu.count": 1}, {"demand": 0.1}, 60.0)
    assert judge(trial, look)[0] is Verdict.WAIT
    due = {"now": trial.judged_at, "running": True, "epoch": 1, "values": {"cpu.count": 1}, "after": {}}
    # Of the 50 s that are left after the readings have settled.
    for data_s, verdict in ((50.0, Verdict.KEEP), (25.0, Verdict.KEEP), (24.0, Verdict.WAIT)):
        assert judge(trial, Look(**due, data_s=data_s))[0] is verdict
    assert judge(trial, Look(**{**due, "epoch": 2}, data_s=60.0))[0] is Verdict.UNJUDGED


def test_trials_go_on_after_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API keeps them up: nobody else would notice that they have ended."""

    async def scenario() -> None:
        begun = 0

        async def run_trials(self: Trials) -> None:
            nonlocal begun
            begun += 1
            if begun == 1:
                raise KeyError("a bug")
            await asyncio.Event().wait()

        monkeypatch.setattr(Trials, "run", run_trials)
        monkeypatch.setattr(lasting, "FIRST_PAUSE_S", 0.0)
        async with serve(tmp_path):
            for _ in range(1000):
                if begun == 2:
                    break
                await asyncio.sleep(0.01)
        assert begun == 2

    run(scenario())
