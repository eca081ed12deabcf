"""advise: what would pay for an instance, or all of them, by what they did."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Final

from innkeeper.agent.live import Live, Metering
from innkeeper.clock import Clock
from innkeeper.control.advice import thresholds
from innkeeper.control.advice.evidence import AVERAGES, PEAKS, Bucket, Evidence, buckets_of, mean
from innkeeper.control.advice.rules import advise
from innkeeper.errors import BadRequest, InnkeeperError, NotFound, WrongState
from innkeeper.spec.advice import AdviceReport, HostLoad, InstanceAdvice, Trial
from innkeeper.spec.host import HostRecord
from innkeeper.spec.instance import State
from innkeeper.spec.metrics import InstanceMetrics, Metrics
from innkeeper.store.repo import Repo
from innkeeper.store.view import InstanceView
from innkeeper.units import human_duration

# In steps of 5 s the history has ten minutes; by the minute 25 hours (agent/sampling/history.py).
FINE_S: Final = 5.0
COARSE_S: Final = 60.0
KEPT_S: Final = 25 * 3600.0
LOAD_DEADLINE_S: Final = 3.0
MAX_LOAD_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Options:
    """How far back to look, and how much of that there must be, in seconds."""

    window_s: float = thresholds.WINDOW_S
    min_data_s: float = thresholds.MIN_DATA_S

    @classmethod
    def of(cls, window_s: float, min_data_s: float | None) -> Options:
        """Of a short window half is enough, where nothing else is said. Raises BadRequest for what nothing
        could satisfy."""
        if min_data_s is None:
            min_data_s = min(thresholds.MIN_DATA_S, window_s / 2)
        if min_data_s > window_s:
            raise BadRequest(
                f"{human_duration(min_data_s)} of data cannot lie in a window of {human_duration(window_s)}",
                hint="choose a longer window, or less data",
            )
        return cls(window_s, min_data_s)


@dataclass(frozen=True)
class Sources:
    """Where evidence is from."""

    repo: Repo
    metering: Metering
    live: Live
    clock: Clock


async def advise_one(sources: Sources, name: str, options: Options) -> InstanceAdvice:
    """Raises NotFound with close names; WrongState for one that does not run: nothing could be seen."""
    view = await sources.repo.view(name)
    refuse_not_running(view)
    return await _advised(await _Known.of(sources), view, options)


async def advise_all(sources: Sources, options: Options) -> AdviceReport:
    """Of all that run."""
    known = await _Known.of(sources)
    found = []
    for view in known.views:
        if view.status.state is State.RUNNING:
            with contextlib.suppress(NotFound):  # removed meanwhile
                found.append(await _advised(known, view, options))
            await asyncio.sleep(0)  # a day of one VM takes some milliseconds: others get a turn
    return AdviceReport(host=known.load(), instances=tuple(found))


def refuse_not_running(view: InstanceView) -> None:
    state = view.status.state
    if state is State.RUNNING and view.record.wanted.template is None:
        return
    hint = f"start it: inn start {view.name}"
    if state is State.PAUSED and view.record.wanted.template is not None:
        raise WrongState(
            f"{view.name} is a template, which stands still: there is nothing to go by",
            hint=f"ask about a copy of it, or let it run on: inn resume {view.name}",
            details={"state": state},
        )
    if state is State.PAUSED:
        hint = f"let it run: inn resume {view.name}"
    raise WrongState(
        f"{view.name} does not run ({state}): there is nothing to go by", hint=hint, details={"state": state}
    )


@dataclass(frozen=True)
class _Known:
    """What is the same for all instances of one answer."""

    sources: Sources
    views: Sequence[InstanceView]
    hosts: dict[str, HostRecord]
    metrics: Metrics
    seen: dict[str, InstanceMetrics]  # by uid
    vcpus: Counter[str]  # of all that run, by host

    @classmethod
    async def of(cls, sources: Sources) -> _Known:
        views = await sources.repo.instances()
        vcpus = Counter[str]()
        for view in views:
            vcpus[view.record.host] += view.status.cpus
        metrics = await sources.metering.metrics()
        return cls(
            sources,
            views,
            {host.name: host for host in await sources.repo.hosts()},
            metrics,
            {one.uid: one for one in metrics.instances},
            vcpus,
        )

    def load(self) -> HostLoad:
        name = self.metrics.host.name
        record = self.hosts.get(name)
        return HostLoad(
            name=name,
            cpus=record.facts.cpus if record else self.metrics.host.cpus,
            vcpus=self.vcpus[name],
            used=self.metrics.host.used,
        )


async def _advised(known: _Known, view: InstanceView, options: Options) -> InstanceAdvice:
    sources, record, status = known.sources, view.record, view.status
    now = sources.clock.time()
    ready_at = status.started_at + status.times_ms.get("ready", 0.0) / 1000
    step_s, rows = readings(sources, view.name, now - options.window_s, options.window_s)
    # What is dear to find out is of use only for one that may be advised more vCPUs.
    busy = _was_busy(rows, status.cpus)
    kept_step_s, kept = readings(sources, view.name, now - KEPT_S, KEPT_S) if busy else (step_s, ())
    queue = await runnable(sources, view) if busy and _was_busy(rows[-1:], status.cpus) else None
    host = known.hosts.get(record.host)
    facts = host.facts if host else None
    if facts is not None:
        available = known.metrics.host.memory_available_bytes
        facts = facts.model_copy(update={"memory_available_bytes": available})
    image = await sources.repo.find_image(record.spec.image) if record.spec.image else None
    trials: tuple[Trial, ...] = (await sources.repo.trials.of(view.name, record.uid)).trials
    return advise(
        Evidence(
            name=view.name,
            spec=record.spec,
            status=status,
            now=now,
            window_s=options.window_s,
            min_data_s=options.min_data_s,
            step_s=step_s,
            # What it did while it booted is not its load.
            buckets=tuple(row for row in rows if not status.started_at - step_s < row.at < ready_at),
            earlier=kept,
            earlier_step_s=kept_step_s,
            host=facts,
            vcpus=known.vcpus[record.host],
            seen=known.seen.get(record.uid),
            runnable=queue,
            least_memory=image.value.min_memory_bytes if image else 0,
            trials=trials,
        )
    )


def readings(sources: Sources, name: str, since: float, window_s: float) -> tuple[float, tuple[Bucket, ...]]:
    """The step, and the buckets that begin at `since` or later: closely of a short window."""
    step_s = FINE_S if window_s <= thresholds.CLOSE_S else COARSE_S
    history = sources.metering.history(name, since, step_s, AVERAGES, PEAKS)
    return float(history.step_s), buckets_of(history, since)


def _was_busy(rows: Sequence[Bucket], cpus: int) -> bool:
    return cpus > 0 and (mean(rows, "demand") or 0.0) > thresholds.MORE_AVERAGE * cpus


async def runnable(sources: Sources, view: InstanceView) -> float | None:
    """How many tasks of the guest run or would like to, on average of the last minute or five; None if it
    does not say."""
    if not view.status.agent:
        return None
    data = b""
    try:
        async with asyncio.timeout(LOAD_DEADLINE_S):
            chunks = await sources.live.read_file(view.name, "/proc/loadavg")
            try:
                async for chunk in chunks:
                    data += chunk
                    if len(data) > MAX_LOAD_BYTES:
                        break
            finally:
                if isinstance(chunks, AsyncGenerator):
                    await chunks.aclose()
        one, five = data.split()[:2]
        found = max(float(one), float(five))
    except (TimeoutError, InnkeeperError, ValueError):
        return None
    return found if 0 <= found < 1e6 else None
