"""fork: copies of an instance as it is at one moment, all in one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import uuid
from dataclasses import dataclass
from typing import Final, Literal

from innkeeper.api.admit import Admission
from innkeeper.api.verbs import change
from innkeeper.api.verbs.rm import rm
from innkeeper.api.verbs.wait import wait
from innkeeper.clock import Clock
from innkeeper.control import forking
from innkeeper.control.lifecycle import is_active
from innkeeper.errors import BadRequest, Conflict, InnkeeperError
from innkeeper.spec.base import check_name
from innkeeper.spec.copying import spec_of_copy
from innkeeper.spec.finding import refuse
from innkeeper.spec.instance import ForkOrigin, InstanceRecord, InstanceSpec, Power, Wanted
from innkeeper.store.repo import Repo
from innkeeper.store.settle import Deadline
from innkeeper.store.view import InstanceView

MAX_COUNT: Final = 1000
# Each attempt that fails means that somebody else got a spare, so this bounds nothing but a bug.
CLAIM_ATTEMPTS: Final = 8
_PLACE: Final = re.compile(r"\{n?\}")


@dataclass(frozen=True, slots=True)
class ForkOptions:
    """`pattern` has `{}` for the number of the copy; empty: the parent's name and a number. `cpus`: of each
    copy; None: as many as the parent has."""

    count: int = 1
    pattern: str = ""
    cpus: int | None = None
    ssh_keys: bool = False
    start: bool = True
    remove_when_ended: bool = False
    hold: str = ""
    until: Literal["running", "ready"] = "ready"
    timeout_s: float | None = None


async def fork(
    repo: Repo, clock: Clock, name: str, options: ForkOptions, admission: Admission | None = None
) -> list[InstanceView]:
    """Fork it. A running parent's copies run on from that moment; a stopped one's are linked clones.

    Either all copies are made, or none is left and the first error is raised.
    """
    deadline = Deadline(options.timeout_s or change.READY_TIMEOUT_S)
    parent = await repo.view(name)
    change.refuse_removed(parent.record)
    live = is_active(parent.record, parent.status)
    refuse(forking.state(parent.record, parent.status))
    refuse(forking.cpus(parent.record, options.cpus, live=live))
    existing = {view.name for view in await repo.instances()}
    names = names_of(name, options.count, options.pattern, existing)
    runs = options.count if live or options.start else 0
    async with (admission or Admission(repo)).of_forks(parent.record, runs, live=live):
        views = await begin(repo, clock, parent, names, options)
    try:
        return await asyncio.gather(*(_awaited(repo, view, options, deadline) for view in views))
    except InnkeeperError:
        await _give_up(repo, [view.record for view in views])
        raise


async def begin(
    repo: Repo,
    clock: Clock,
    parent: InstanceView,
    names: list[str],
    options: ForkOptions,
    spec: InstanceSpec | None = None,
) -> list[InstanceView]:
    """Write the records of the copies, all in one transaction; of `spec` instead of the parent's, if given.
    Copies of a template are those that wait already, as far as there are any."""
    template, live = parent.status.template, is_active(parent.record, parent.status)
    token, now = template or secrets.token_hex(8), clock.time()
    records = [
        record_of_copy(
            parent.record, child, index, token, now, live=live, template=template != "", options=options
        )
        for index, child in enumerate(names)
    ]
    if spec is not None:
        records = [record.model_copy(update={"spec": spec}) for record in records]
    # A port that leads to it is made with its QEMU, so one that waits cannot have it.
    plain = not any(network.forward for record in records for network in record.spec.networks)
    for _ in range(CLAIM_ATTEMPTS if template and plain else 0):
        claims = await repo.spares.ready_of(token, len(records))
        given = [
            record.model_copy(update={"uid": claim.uid})
            for record, claim in zip(records, claims, strict=False)
        ]
        with contextlib.suppress(Conflict):  # somebody else was faster
            return await repo.create_instances([*given, *records[len(given) :]], claims=claims)
    return await repo.create_instances(records)


def names_of(parent: str, count: int, pattern: str, existing: set[str]) -> list[str]:
    """Names for the copies: of a pattern exactly its numbers, else the next free ones."""
    if not 1 <= count <= MAX_COUNT:
        raise BadRequest(f"Cannot make {count} copies", hint=f"from 1 to {MAX_COUNT} at a time")
    if pattern and not _PLACE.search(pattern):
        if count > 1:
            raise BadRequest(
                f"The name {pattern!r} cannot be that of {count} copies", hint="put {} where the number goes"
            )
        return [check_name(pattern)]
    if pattern:
        return [check_name(_PLACE.sub(str(number), pattern)) for number in range(1, count + 1)]
    names: list[str] = []
    number = 1
    while len(names) < count:
        candidate = f"{parent}-{number}"
        if candidate not in existing:
            names.append(check_name(candidate))
        number += 1
    return names


def record_of_copy(
    parent: InstanceRecord,
    name: str,
    index: int,
    token: str,
    now: float,
    *,
    live: bool,
    template: bool = False,
    options: ForkOptions,
) -> InstanceRecord:
    starts = live or options.start
    return InstanceRecord(
        name=name,
        uid=str(uuid.uuid4()),
        created_at=now,
        host=parent.host,
        nodes=parent.nodes,
        image_id=parent.image_id,
        spec=forking.with_cpus(spec_of_copy(parent.spec), options.cpus),
        wanted=Wanted(
            power=Power.ON if starts else Power.OFF,
            epoch=1 if starts else 0,
            remove_if_start_fails=True,
            remove_when_ended=options.remove_when_ended,
            hold=options.hold,
        ),
        fork=ForkOrigin(
            parent=parent.name,
            parent_uid=parent.uid,
            moment=token,
            index=index,
            ssh_keys=options.ssh_keys,
            live=live,
            template=template,
        ),
    )


async def _awaited(repo: Repo, view: InstanceView, options: ForkOptions, deadline: Deadline) -> InstanceView:
    view = await change.settled(repo, view, deadline)
    if view.record.wanted.power is Power.ON and options.until == "ready":
        view = await wait(repo, view.name, "ready", timeout_s=deadline)
    return view


async def _give_up(repo: Repo, records: list[InstanceRecord]) -> None:
    """One failed, so none stays; what is gone already is as good."""
    removals = [rm(repo, record.name, force=True, uid=record.uid, timeout_s=10.0) for record in records]
    await asyncio.gather(*removals, return_exceptions=True)
