"""Advice that is applied: changed by the ordinary verb, watched for a while, taken back if it was worse.

A trial is in the store before anything is changed, so a daemon that is killed goes on where it was: each
state says what comes next, and doing that again does no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Mapping
from typing import Any, Final

from innkeeper.api.admit import Admission
from innkeeper.api.verbs.advise import (
    Options,
    Sources,
    advise_one,
    readings,
    refuse_not_running,
    runnable,
)
from innkeeper.api.verbs.apply import apply
from innkeeper.control.advice import thresholds
from innkeeper.control.advice.evidence import first_line, of_size, with_changes
from innkeeper.control.advice.trial import Look, Verdict, judge, measured, settle_s
from innkeeper.errors import Conflict, InnkeeperError, NotFound, StoreError, Unsupported
from innkeeper.spec.advice import Advice, InstanceAdvice, Kind, Trial, TrialsRecord, TrialState
from innkeeper.spec.instance import InstanceSpec, State
from innkeeper.store.view import InstanceView
from innkeeper.telemetry.log import fields

log = logging.getLogger("innkeeper.api.trials")

LOOK_S: Final = 5.0  # how often one that waits for readings is looked at
RETRY_S: Final = 5.0  # after a store that failed
CHANGE_ATTEMPTS: Final = 10


class Trials:
    """`run` while the API serves; `apply` begins a trial."""

    def __init__(self, sources: Sources, admission: Admission) -> None:
        self._sources, self._admission = sources, admission
        self._repo, self._clock = sources.repo, sources.clock
        self._locks: dict[str, asyncio.Lock] = {}
        self._begun = asyncio.Event()

    # -- beginning ---------------------------------------------------------------------------------

    async def apply(
        self, name: str, options: Options, *, kind: Kind | None = None, watch_s: float | None = None
    ) -> InstanceAdvice:
        """Apply the most urgent advice (of that kind) which can take effect now, if there is any, and watch
        it. Returns the advice as it is then, with the trial last. Raises NotFound, WrongState for one that
        does not run, Conflict while another trial of it goes on, and what the change raised: the instance is
        as it was then."""
        async with self._lock(name):
            view = await self._repo.view(name)
            refuse_not_running(view)
            record = await self._repo.trials.of(name, view.record.uid)
            _refuse_second(record, self._clock.time())
            found = await advise_one(self._sources, name, options)
            chosen = next((one for one in found.advice if one.live and kind in (None, one.kind)), None)
            if chosen is None:
                return found
            window_s = min(options.window_s, thresholds.TRIAL_S) if watch_s is None else watch_s
            trial = await self._first(view, chosen, window_s)
            await self._keep(record, trial)
            self._begun.set()
            await self._change(record, trial)
            after = await self._repo.trials.of(name, view.record.uid)
            return found.model_copy(update={"trials": after.trials})

    async def _first(self, view: InstanceView, advice: Advice, window_s: float) -> Trial:
        spec = view.record.spec
        after = with_changes(spec, advice.change)
        now = self._clock.time()
        return Trial(
            id=secrets.token_hex(8),
            kind=advice.kind,
            reason=advice.reason,
            what=advice.what,
            change={path: value_at(after, path) for path in advice.change},
            before={path: value_at(spec, path) for path in advice.change},
            epoch=view.status.epoch,
            state=TrialState.APPLYING,
            started_at=now,
            window_s=window_s,
            measured_before=(await self._measured(view, now - window_s, window_s))[0],
        )

    async def _change(self, record: TrialsRecord, trial: Trial) -> None:
        """APPLYING to WATCHING, or to REFUSED with the error raised."""
        try:
            await self._set(record.name, trial.change)
        except StoreError:
            raise  # nothing is known to have happened: gone on with when the store works again
        except InnkeeperError as error:
            await self._refused(record, trial, error)
            raise
        now = self._clock.time()
        await self._keep(record, trial, state=TrialState.WATCHING, changed_at=now)

    async def _refused(self, record: TrialsRecord, trial: Trial, error: InnkeeperError) -> None:
        """All or nothing: what a guest took up of it in part is put back."""
        outcome, state = f"refused: {error.message}", TrialState.REFUSED
        try:
            await self._set(record.name, trial.before)
        except NotFound:
            return
        except InnkeeperError as again:
            outcome, state = f"{outcome}; and it could not be put back: {again.message}", TrialState.STUCK
        await self._end(record, trial, state, outcome)

    async def _set(self, name: str, values: Mapping[str, Any]) -> None:
        """By the verb that `inn set` uses. Raises what it raises, and Unsupported for what would wait for a
        restart, or does not go with what somebody else has changed since."""
        for attempt in range(CHANGE_ATTEMPTS):
            now = (await self._repo.instance(name)).value.spec
            try:
                spec = with_changes(now, values)
            except ValueError as error:
                said = ", ".join(f"{path}={value}" for path, value in values.items())
                raise Unsupported(f"{name} cannot have {said} as it is now: {first_line(error)}") from None
            try:
                before = now.model_dump(mode="json")
                done = await apply(self._repo, self._admission, self._clock, name, spec, before=before)
                break
            except Conflict as error:  # somebody has just changed something else, which stays
                if not error.details.get("stale") or attempt == CHANGE_ATTEMPTS - 1:
                    raise
        if late := [path for path in done.needs_restart if path in values]:
            raise Unsupported(f"{late[0]} of {name} can change at its next start only")

    # -- going on ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at every trial when it is due, for ever."""
        while True:
            self._begun.clear()
            try:
                due_s = await self.step()
            except InnkeeperError as error:
                log.warning("trials cannot be looked at", extra=fields(error=error.message))
                due_s = RETRY_S
            if due_s is None:
                await self._begun.wait()
                continue
            with contextlib.suppress(TimeoutError):
                await self._sleep(max(0.05, due_s))

    async def _sleep(self, seconds: float) -> None:
        """So long, or until a trial has begun."""
        naps = [asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._begun.wait())]
        try:
            await asyncio.wait(naps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for nap in naps:
                nap.cancel()

    async def step(self) -> float | None:
        """Take every open trial as far as it goes now; seconds until the next is due, None if there is none.
        Raises StoreError."""
        due: list[float] = []
        for record in await self._repo.trials.all():
            if not any(trial.is_open for trial in record.trials):
                continue
            async with self._lock(record.name):
                with contextlib.suppress(NotFound):
                    wait_s = await self._go_on(record.name, record.uid)
                    due += [] if wait_s is None else [wait_s]
        return min(due, default=None)

    async def _go_on(self, name: str, uid: str) -> float | None:
        record = await self._repo.trials.of(name, uid)
        trial = next((one for one in record.trials if one.is_open), None)
        view = await self._repo.view(name)
        if trial is None or view.record.uid != uid:
            return None
        if trial.state is TrialState.REVERTING:
            await self._revert(record, trial)
            return None
        if trial.state is TrialState.APPLYING:
            return await self._apply_again(record, trial, view)
        look = await self._look(trial, view)
        verdict, why = judge(trial, look)
        if verdict is Verdict.WAIT:
            return max(trial.judged_at - self._clock.time(), 0.0) or LOOK_S
        if verdict is Verdict.REVERT:
            trial = await self._keep(
                record, trial, state=TrialState.REVERTING, outcome=why, measured_after=look.after
            )
            await self._revert(record, trial)
            return None
        state = TrialState.KEPT if verdict is Verdict.KEEP else TrialState.UNJUDGED
        await self._end(record, trial, state, why, measured_after=look.after)
        return None

    async def _apply_again(self, record: TrialsRecord, trial: Trial, view: InstanceView) -> float | None:
        """A daemon was killed while it changed something."""
        if view.status.state is not State.RUNNING or view.status.epoch != trial.epoch:
            # It may stand in the spec already; what was not seen to work is not left for the next start.
            with contextlib.suppress(InnkeeperError):
                await self._set(record.name, trial.before)
            await self._end(record, trial, TrialState.REFUSED, "the VM ended while it was changed")
            return None
        try:
            await self._change(record, trial)
        except StoreError:
            raise
        except InnkeeperError:
            return None
        return trial.window_s

    async def _revert(self, record: TrialsRecord, trial: Trial) -> None:
        try:
            await self._set(record.name, trial.before)
        except (StoreError, NotFound):
            raise
        except InnkeeperError as error:
            outcome = f"{trial.outcome}; it could not be put back: {error.message}"
            await self._end(record, trial, TrialState.STUCK, outcome)
            return
        await self._end(record, trial, TrialState.REVERTED, f"worse, and put back: {trial.outcome}")

    async def _look(self, trial: Trial, view: InstanceView) -> Look:
        now = self._clock.time()
        after: dict[str, float] = {}
        data_s = 0.0
        if now >= trial.judged_at:
            after, data_s = await self._after(trial, view)
        spec = view.record.spec
        return Look(
            now=now,
            running=view.status.state is State.RUNNING,
            epoch=view.status.epoch,
            values={path: value_at(spec, path) for path in trial.change},
            after=after,
            data_s=data_s,
        )

    async def _after(self, trial: Trial, view: InstanceView) -> tuple[dict[str, float], float]:
        since = trial.changed_at + settle_s(trial.window_s)
        return await self._measured(view, since, trial.window_s)

    async def _measured(
        self, view: InstanceView, since: float, window_s: float
    ) -> tuple[dict[str, float], float]:
        """Averages since then, and of how many seconds they are: of the size it has now only."""
        step_s, rows = readings(self._sources, view.name, since, window_s)
        cpus = view.status.cpus
        rows = of_size(rows, "given_cpus", cpus)
        queue = await runnable(self._sources, view)
        return measured(rows, cpus, runnable=queue), len(rows) * step_s

    # -- keeping -----------------------------------------------------------------------------------

    async def _end(
        self, record: TrialsRecord, trial: Trial, state: TrialState, outcome: str, **more: Any
    ) -> None:
        log.info("trial ended", extra=fields(instance=record.name, what=trial.what, state=state, why=outcome))
        await self._keep(record, trial, state=state, outcome=outcome, ended_at=self._clock.time(), **more)

    async def _keep(self, record: TrialsRecord, trial: Trial, **changes: Any) -> Trial:
        """Write it down, in place of what was known of it before. Raises StoreError."""
        after = trial.model_copy(update=changes)
        latest = await self._repo.trials.of(record.name, record.uid)
        others = [one for one in latest.trials if one.id != trial.id]
        trials = tuple([*others, after][-thresholds.KEPT_TRIALS :])
        await self._repo.trials.put(latest.model_copy(update={"trials": trials}))
        return after

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())


def value_at(spec: InstanceSpec, path: str) -> Any:
    """A field by its path, as JSON has it; None where there is none, as of a disk that was taken away."""
    place: Any = spec.model_dump(mode="json")
    try:
        for part in path.split("."):
            place = place[int(part)] if isinstance(place, list) else place[part]
    except (KeyError, IndexError, TypeError):
        return None
    return place


def _refuse_second(record: TrialsRecord, now: float) -> None:
    trial = next((one for one in record.trials if one.is_open), None)
    if trial is None:
        return
    left_s = max(0.0, trial.judged_at - now) if trial.changed_at else trial.window_s
    raise Conflict(
        f"{record.name} is being watched after a change already: {trial.what}",
        hint=f"it is judged in {left_s:.0f} s; see inn advise {record.name}",
        details={"trial": trial.id},
    )
