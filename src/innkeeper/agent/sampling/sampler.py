"""The loop that reads every running VM and the host, at a level of detail that its cost decides.

    /proc/PID counters        every 5 s, all VMs in one go: some 50 us each
    QMP counters              every 10 s of a VM that does something, else once a minute
    the guest's interfaces    through its agent, every minute or 5 min; of a tap the host's own counters
    page tables               memory shares and NUMA nodes, one VM after the other, at most 0.5 % of a core

Somebody who watches (`inn top`) gets all of it more often, for as long as he does. Whatever may hang - QEMU,
a guest, the kernel's walk - has a deadline and a task of its own, so that no VM holds up another's readings.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Final

from innkeeper.agent import sysfs
from innkeeper.agent.attribution import judge
from innkeeper.agent.context import Context, Running
from innkeeper.agent.sampling import history as histories
from innkeeper.agent.sampling import proc
from innkeeper.agent.sampling.devices import Devices
from innkeeper.agent.sampling.files import Budget, read_whole
from innkeeper.agent.sampling.host import HostTracker
from innkeeper.agent.sampling.limits import in_force
from innkeeper.agent.sampling.render import instance_metrics
from innkeeper.agent.sampling.ring import Table
from innkeeper.agent.sampling.scene import scene
from innkeeper.agent.sampling.tracker import Schedule, Tracker, guest_traffic, tap_traffic
from innkeeper.agent.sampling.walk import Walker
from innkeeper.errors import InnkeeperError, NotFound
from innkeeper.spec.instance import InstanceRecord, InstanceStatus, State
from innkeeper.spec.metrics import History, Metrics
from innkeeper.spec.why import Why

log = logging.getLogger("innkeeper.sampling")

INTERVAL_S: Final = 5.0
WATCHED_FOR_S: Final = 10.0  # after a request somebody is taken to be watching
COUNTERS: Final = Schedule(first_s=10.0, active_s=10.0, quiet_s=60.0)
COUNTERS_WATCHED: Final = Schedule(first_s=1.0, active_s=1.0, quiet_s=15.0)
# A question costs a guest under TCG 4 ms of CPU time: 100 of them every 15 s would be too much.
TRAFFIC: Final = Schedule(first_s=15.0, active_s=60.0, quiet_s=300.0)
TRAFFIC_WATCHED: Final = Schedule(first_s=2.0, active_s=4.0, quiet_s=30.0)
AGENT_DEADLINE_S: Final = 3.0
# A watcher's answer waits so long for VMs that were just asked; a hung one comes with what is known.
ANSWER_WITHIN_S: Final = 0.3
FRESH_S: Final = 1.0  # what was read longer ago is read again before it is judged by
SAVE_INTERVAL_S: Final = 600.0
_BATCH: Final = 20  # VMs read before others get a turn
_ASKED_STATES: Final = frozenset({State.RUNNING, State.PAUSED})


class Sampler:
    """`run` until cancelled, then `close`. `root` has the host's /proc and /sys."""

    def __init__(self, ctx: Context, root: Path = Path("/")) -> None:
        self._ctx, self._root = ctx, root
        self._budget = Budget()
        self._trackers: dict[str, Tracker] = {}  # by uid
        self._turn = asyncio.Lock()
        self._watched_at = -WATCHED_FOR_S
        self._node_of_cpu = {cpu: node.id for node in sysfs.numa_nodes(root) for cpu in node.cpus}
        self._devices = Devices(root)
        self.host = HostTracker(ctx.host.name, histories.load(ctx.paths.host_history), root)

    async def run(self) -> None:
        walker = Walker(self._ctx.clock, self._trackers, len(set(self._node_of_cpu.values())) > 1)
        walking = asyncio.create_task(walker.run(lambda: self._watched))
        try:
            due = self._ctx.clock.monotonic()
            while True:
                await self._guarded(self.look)
                due = max(due + INTERVAL_S, self._ctx.clock.monotonic())
                await self._ctx.clock.sleep(due - self._ctx.clock.monotonic())
        finally:
            walking.cancel()
            await asyncio.gather(walking, return_exceptions=True)

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Readings are no reason for anything else to end."""
        try:
            await work()
        except (OSError, ValueError, IndexError, InnkeeperError) as error:
            log.warning("reading counters failed: %r", error)

    async def close(self) -> None:
        """Keep what is known; every VM runs on."""
        for uid in list(self._trackers):
            self._end(uid)
        self.host.history.finish()
        self._save_host()

    # -- reading -----------------------------------------------------------------------------------

    async def look(self) -> None:
        """Read everything once."""
        async with self._turn:
            now, wall = self._ctx.clock.monotonic(), self._ctx.clock.time()
            self.host.read(now, wall)
            for uid in self._trackers.keys() - self._ctx.running.keys():
                self._end(uid)
            interfaces: dict[str, tuple[int, int, int, int]] = {}
            if any(tracker.taps for tracker in self._trackers.values()):
                interfaces = proc.parse_net_dev(read_whole(f"{self._root}/proc/net/dev"))
            for place, (uid, running) in enumerate(list(self._ctx.running.items())):
                if place % _BATCH == _BATCH - 1:
                    await asyncio.sleep(0)
                self._read(uid, running, interfaces)
            self._save_some(now)

    def _read(self, uid: str, running: Running, interfaces: dict[str, tuple[int, int, int, int]]) -> None:
        """One VM; one that is being handed over is left alone: for a moment it has two processes."""
        if not running.at_rest.is_set() or running.gone.is_set():
            return
        tracker = self._trackers.get(uid)
        if tracker is None:
            tracker = self._trackers[uid] = self._begin(uid)
            tracker.watching = asyncio.create_task(self._end_with(uid, running))
        try:
            if tracker.machine is not running.machine:
                tracker.open(running.machine)
                tracker.devices = _under(running, self._devices)
                self.host.devices |= set(tracker.devices.values()) - {""}
            tracker.balloon = running.balloon
            now = self._ctx.clock.monotonic()
            status = self._ctx.statuses.get(uid, InstanceStatus())
            tracker.given = _given(status)
            tracker.limits = in_force(status.disk_limits)
            tracker.read(now, self._ctx.clock.time())
        except (OSError, ValueError, IndexError) as error:
            # It has just ended: whoever watches it will say so.
            log.debug("cannot read %s: %s", uid, error)
            tracker.close()
            return
        traffic = tap_traffic(tracker.taps, interfaces)
        if traffic is not None:
            tracker.carried(now, traffic)
        self._ask(tracker, running, now)

    def _begin(self, uid: str) -> Tracker:
        loaded = histories.load(self._ctx.paths.instance(uid).history)
        tracker = Tracker(uid, loaded, self._budget, self._root / "proc")
        # Not all at once: some offset that is always the same.
        offset = zlib.crc32(uid.encode()) % int(SAVE_INTERVAL_S)
        tracker.saved_at = self._ctx.clock.monotonic() - offset
        return tracker

    async def _end_with(self, uid: str, running: Running) -> None:
        """Nothing of a VM is kept open when it has ended."""
        await running.gone.wait()
        if uid in self._trackers:
            self._end(uid)

    def _end(self, uid: str) -> None:
        tracker = self._trackers.pop(uid)
        tracker.close()
        if tracker.watching is not None and tracker.watching is not asyncio.current_task():
            tracker.watching.cancel()
        tracker.history.finish()
        self._save(tracker)

    # -- asking QEMU and the guest -----------------------------------------------------------------

    @property
    def _watched(self) -> bool:
        return self._ctx.clock.monotonic() - self._watched_at < WATCHED_FOR_S

    def _ask(self, tracker: Tracker, running: Running, now: float) -> None:
        status = self._ctx.statuses.get(tracker.uid, InstanceStatus())
        if status.state not in _ASKED_STATES:
            return  # hung, or on its way to its end
        watched = self._watched
        if tracker.due("counters", now, COUNTERS_WATCHED if watched else COUNTERS):
            self._start(tracker, "counters", self._ask_qemu(tracker, running, first=tracker.counters is None))
        if (
            status.agent
            and status.state is State.RUNNING
            and not tracker.taps
            and tracker.due("traffic", now, TRAFFIC_WATCHED if watched else TRAFFIC)
        ):
            self._start(tracker, "traffic", self._ask_guest(tracker, running))

    def _start(self, tracker: Tracker, what: str, work: Awaitable[None]) -> None:
        async def ask() -> None:
            with contextlib.suppress(InnkeeperError, OSError):  # asked again when it is due
                await work

        tracker.asked[what] = self._ctx.clock.monotonic()
        task = asyncio.create_task(ask())
        tracker.asking[what] = task
        task.add_done_callback(lambda done: self._asked(tracker, what, done))

    def _asked(self, tracker: Tracker, what: str, task: asyncio.Task[None]) -> None:
        if tracker.asking.get(what) is task:
            del tracker.asking[what]
        if not task.cancelled() and task.exception() is not None:
            log.error("asking for %s failed", what, exc_info=task.exception())

    async def _ask_qemu(self, tracker: Tracker, running: Running, *, first: bool) -> None:
        machine = running.machine
        if first:
            ids = await machine.thread_ids()
            if tracker.machine is machine and tracker.reader is not None:
                tracker.reader.told(ids.vcpus, ids.iothreads)
        counters = await machine.counters()
        if tracker.machine is machine:
            tracker.counted(self._ctx.clock.monotonic(), counters)

    async def _ask_guest(self, tracker: Tracker, running: Running) -> None:
        if running.plan is None or not running.plan.nics:
            return
        machine = running.machine
        macs = {mac for nic in running.plan.nics for mac in (nic.mac, nic.built_mac)}
        macs |= set(running.plan.inherited_macs or ())
        interfaces = await running.agent.interface_counters(deadline_s=AGENT_DEADLINE_S)
        traffic = guest_traffic(interfaces, macs)
        if traffic is not None and tracker.machine is machine:
            tracker.carried(self._ctx.clock.monotonic(), traffic)

    # -- keeping it --------------------------------------------------------------------------------

    def _save_some(self, now: float) -> None:
        if now - self.host.saved_at >= SAVE_INTERVAL_S:
            self.host.saved_at = now
            self._save_host()
        for tracker in self._trackers.values():
            if now - tracker.saved_at >= SAVE_INTERVAL_S:
                tracker.saved_at = now
                self._save(tracker)

    def _save(self, tracker: Tracker) -> None:
        """Of an instance that is being removed nothing is written any more."""
        status = self._ctx.statuses.get(tracker.uid)
        path = self._ctx.paths.instance(tracker.uid).history
        if status is None or status.state is State.REMOVING or not path.parent.exists():
            return
        _keep(tracker.history, path)

    def _save_host(self) -> None:
        _keep(self.host.history, self._ctx.paths.host_history)

    # -- answers -----------------------------------------------------------------------------------

    async def metrics(self, max_age_s: float | None = None) -> Metrics:
        """What is known of all instances and the host; with `max_age_s` read again if that is older."""
        if max_age_s is not None:
            await self._refresh(max_age_s)
        now = self._ctx.clock.monotonic()
        ours = [one.rates.used for one in self._trackers.values() if one.rates is not None]
        return Metrics(
            host=self.host.metrics(used_by_vms=sum(ours)),
            instances=tuple(
                instance_metrics(
                    record,
                    self._ctx.statuses.get(record.uid, InstanceStatus()),
                    self._trackers.get(record.uid) if record.uid in self._ctx.running else None,
                    now,
                    self._node_of_cpu,
                )
                for record in sorted(self._ctx.records.values(), key=lambda one: one.name)
            ),
        )

    async def _refresh(self, max_age_s: float) -> None:
        now = self._ctx.clock.monotonic()
        self._watched_at = now
        if self.host.sample is None or now - self.host.sample.at >= max_age_s:
            await self._guarded(self.look)
            asking = {task for tracker in self._trackers.values() for task in tracker.asking.values()}
            if asking:
                await asyncio.wait(asking, timeout=ANSWER_WITHIN_S)

    def history(
        self,
        name: str,
        since: float,
        resolution_s: float,
        average: Collection[str] | None = None,
        peak: Collection[str] | None = None,
    ) -> History:
        """Of an instance, or of the host for the empty name. Raises NotFound."""
        kept = self.host.history
        if name:
            record = self._record(name)
            tracker = self._trackers.get(record.uid)
            path = self._ctx.paths.instance(record.uid).history
            kept = tracker.history if tracker else histories.load(path)
        return _told(name or self.host.name, *kept.table(since, resolution_s, average, peak))

    async def why(self, name: str, since_s: float) -> Why:
        """What held an instance up in the last seconds. Raises NotFound; WrongState when it did not run."""
        record = self._record(name)
        await self._refresh(FRESH_S)
        for _reading in range(2):  # as many as it takes of one that has just started
            tracker = self._trackers.get(record.uid)
            if record.uid not in self._ctx.running or (tracker is not None and tracker.rates is not None):
                break
            await self._ctx.clock.sleep(FRESH_S)
            await self._refresh(FRESH_S / 2)
        record = self._record(name)  # it may have been removed meanwhile
        found = await scene(self._ctx, self._trackers, self.host, self._node_of_cpu, record, since_s)
        return await asyncio.to_thread(judge.why, found)  # a day of many VMs takes seconds

    def _record(self, name: str) -> InstanceRecord:
        record = self._ctx.records.get(name)
        if record is None:
            raise NotFound(f"No instance named {name} on this host", hint="see what there is: inn list")
        return record


def _told(name: str, step_s: int, table: Table) -> History:
    """Numbers of our own: to check a day of them would take as long as all the rest."""
    return History.model_construct(
        name=name, step_s=step_s, times=table.times, average=table.average, peak=table.peak
    )


def _under(running: Running, devices: Devices) -> dict[str, str]:
    """On which device of the host what its disks write ends up, by the name of the disk."""
    disks = running.plan.disks if running.plan else ()
    return {disk.name: devices.under(disk.chain[0].path) for disk in disks if disk.chain}


def _keep(history: histories.History, path: Path) -> None:
    try:
        history.save(path)
    except OSError as error:
        log.warning("the history cannot be kept in %s: %s", path, error.strerror)


def _given(status: InstanceStatus) -> dict[str, float]:
    """Nothing of one that is not known to have anything."""
    found = {"given_cpus": float(status.cpus), "given_memory": float(status.memory.size)}
    return {name: value for name, value in found.items() if value}
