"""Admission, one at a time: between choosing a host and writing the promise nobody else chooses.

The lock is held for two reads and one write of the store, never while anything happens to a VM.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from innkeeper.api.index import Index
from innkeeper.control import cpuadmission, diskadmission, forking, memoryadmission, overcommit
from innkeeper.control.admission import node_promises, open_claims
from innkeeper.control.lifecycle import is_active
from innkeeper.control.placement import Placement, place
from innkeeper.errors import NoCapacity
from innkeeper.spec.finding import refuse
from innkeeper.spec.instance import InstanceRecord, InstanceSpec
from innkeeper.store.repo import Repo
from innkeeper.store.view import InstanceView


class Admission:
    """Decides by the instances of `index`, or of the store where there is none."""

    def __init__(
        self, repo: Repo, index: Index | None = None, look_again: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """`look_again` refreshes what is known of the hosts: no refusal goes by figures of the past."""
        self._repo = repo
        self._index = index
        self._look_again = look_again
        self._turn = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def turn(
        self, spec: InstanceSpec, *, but: str = "", host: str = "", to_run: bool = True
    ) -> AsyncIterator[Placement]:
        """Place `spec` (on `host`, if it has one already) and hold the others off until the body has
        written that down. `but` names the instance itself. Raises as `place` does."""
        async with self._turn:
            try:
                placement = await self._place(spec, but, host, to_run)
            except NoCapacity:
                if self._look_again is None:
                    raise
                await self._look_again()
                placement = await self._place(spec, but, host, to_run)
            yield placement
            if self._index:
                await self._index.reached(await self._repo.store.revision())

    async def _place(self, spec: InstanceSpec, but: str, host: str, to_run: bool) -> Placement:
        hosts = [found for found in await self._repo.hosts() if host in ("", found.name)]
        views = await self._views()
        claims, promises = open_claims(views, hosts, but=but), node_promises(views, hosts, but=but)
        overcommit.check_reservation(spec)
        rules = [
            cpuadmission.rule(spec, views, but=but, to_run=to_run),
            memoryadmission.rule(spec),
            diskadmission.rule(spec),
        ]
        if to_run:
            rules.append(overcommit.rule(spec, views, but=but))
        return place(spec, hosts, claims, promises, to_run=to_run, rules=rules)

    @contextlib.asynccontextmanager
    async def of_forks(self, parent: InstanceRecord, count: int, *, live: bool = True) -> AsyncIterator[None]:
        """Hold the others off until the body has written the copies down. Raises NoCapacity when their host
        has no room for them, or cannot promise them what they reserve."""
        async with self._turn:
            hosts, views = await self._repo.hosts(), await self._views()
            if live:
                refuse(forking.room(parent, count, hosts))
            refuse(overcommit.room_for_forks(parent, count, hosts, views, live=live))
            refuse(cpuadmission.of_copies(parent, count, hosts, views))
            yield
            if self._index:
                await self._index.reached(await self._repo.store.revision())

    @contextlib.asynccontextmanager
    async def of_change(self, view: InstanceView, spec: InstanceSpec) -> AsyncIterator[None]:
        """Hold the others off until the body has written the changed `spec` down. Raises NoCapacity when
        the VM runs and its host cannot promise it that, Unsupported when it never could."""
        async with self._turn:
            overcommit.check_reservation(spec)
            hosts, views = await self._repo.hosts(), await self._views()
            cpuadmission.refuse_change(view, spec, hosts, views)
            memoryadmission.refuse_change(view.record, spec, hosts)
            diskadmission.refuse_change(view.record, spec, hosts)
            if is_active(view.record, view.status):
                overcommit.refuse_change(view.record, spec, hosts, views)
            yield
            if self._index:
                await self._index.reached(await self._repo.store.revision())

    async def _views(self) -> Sequence[InstanceView]:
        return self._index.instances() if self._index else await self._repo.instances()
