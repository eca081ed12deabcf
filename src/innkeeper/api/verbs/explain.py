"""explain: what would block a verb now and what would follow from it, without doing it.

Made of the verbs' own rules: what raises in a verb is a finding here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from innkeeper.agent.live import Live
from innkeeper.api.admit import Admission
from innkeeper.api.verbs import change
from innkeeper.api.verbs.fork import names_of
from innkeeper.api.verbs.rm import refuse_running
from innkeeper.api.verbs.start import switched_on
from innkeeper.control import cpuadmission, forking, overcommit
from innkeeper.control.lifecycle import is_active
from innkeeper.errors import InnkeeperError
from innkeeper.spec.finding import Finding, asked, block, ok, warn
from innkeeper.store.repo import Repo
from innkeeper.store.view import InstanceView
from innkeeper.units import human_size

Verb = Literal["fork", "clone", "start", "stop", "rm"]


@dataclass(frozen=True, slots=True)
class Asked:
    """Of whom the rules ask, and what about."""

    repo: Repo
    admission: Admission
    live: Live
    view: InstanceView
    count: int
    cpus: int | None = None


async def explain(
    repo: Repo, admission: Admission, live: Live, verb: Verb, name: str, count: int, cpus: int | None = None
) -> list[Finding]:
    view = await repo.view(name)
    rules = asked(lambda: change.refuse_removed(view.record), "") if verb != "rm" else ()
    found = [one for one in rules if one.error]
    return found or await _EXPLAIN[verb](Asked(repo, admission, live, view, count, cpus))


async def _fork(about: Asked) -> list[Finding]:
    record, status = about.view.record, about.view.status
    names_of(record.name, about.count, "", set())  # a count that is none is a bad question, not a finding
    found = list(forking.state(record, status))
    if any(one.error for one in found):
        return found
    active = is_active(record, status)
    found += forking.cpus(record, about.cpus, live=active)
    if active:
        hosts, views = await about.repo.hosts(), await about.repo.instances()
        found += forking.room(record, about.count, hosts)
        found += overcommit.room_for_forks(record, about.count, hosts, views)
        found += cpuadmission.of_copies(record, about.count, hosts, views)
    else:
        found += await _admission(about)
    if any(network.forward for network in record.spec.networks):
        found.append(warn(f"host ports forwarded to {record.name} stay its own: the copies have none"))
    try:
        return found + await about.live.explain_fork(record.name)
    except InnkeeperError as error:
        return [*found, block(error)]


async def _clone(about: Asked) -> list[Finding]:
    record, status = about.view.record, about.view.status
    found = list(forking.state(record, status, boots=True))
    if any(one.error for one in found):
        return found
    found += await _admission(about)
    try:
        return found + await about.live.explain_fork(record.name, copied=True)
    except InnkeeperError as error:
        return [*found, block(error)]


async def _start(about: Asked) -> list[Finding]:
    record, status = about.view.record, about.view.status
    if is_active(record, status):
        return list(asked(lambda: switched_on(record, status), f"it is {status.state} already"))
    return [*asked(lambda: switched_on(record, status), f"it is {status.state}"), *await _admission(about)]


async def _admission(about: Asked) -> list[Finding]:
    record = about.view.record
    try:
        async with about.admission.turn(record.spec, but=record.name, host=record.host) as placement:
            return [ok(f"{placement.host} has the {human_size(placement.memory_bytes)} of memory it needs")]
    except InnkeeperError as error:
        return [block(error)]


async def _stop(about: Asked) -> list[Finding]:
    return list(_stop_now(about.view))


def _stop_now(view: InstanceView) -> Iterator[Finding]:
    record, status = view.record, view.status
    if not is_active(record, status):
        yield ok(f"it is {status.state} already")
    elif status.agent:
        yield ok("its guest agent is asked to shut the guest down")
    else:
        yield warn(
            "no guest agent answers: the power button is pressed, which a guest may ignore",
            f"if it does, end it at once: inn kill {record.name}",
        )


async def _rm(about: Asked) -> list[Finding]:
    record, status = about.view.record, about.view.status
    return list(asked(lambda: refuse_running(record, status), f"it is {status.state}; its disks go with it"))


_EXPLAIN: Final[dict[Verb, Callable[[Asked], Awaitable[list[Finding]]]]] = {
    "fork": _fork,
    "clone": _clone,
    "start": _start,
    "stop": _stop,
    "rm": _rm,
}
