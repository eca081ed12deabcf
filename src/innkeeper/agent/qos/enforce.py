"""Write what each VM is to have into its control group; the one place that does.

What that is is decided part by part, of all VMs at once (agent/qos/parts.py). Written is only what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from innkeeper.agent.context import Context
from innkeeper.agent.qos.parts import PARTS
from innkeeper.agent.sampling.files import aside
from innkeeper.drivers.cgroup import Group
from innkeeper.drivers.cgroupvalues import Setting
from innkeeper.errors import InnkeeperError

# Taking 64 MiB from a group by way of a slow disk is a second.
DEADLINE_S: Final = 30.0

Outcome = dict[str, dict[str, str]]  # uid -> part -> why it is not in force, or empty


@dataclass(frozen=True, slots=True)
class _Order:
    uid: str
    part: str
    group: Group | None
    settings: Sequence[Setting] | str


def enforce(ctx: Context, only: str | None = None, parts: Iterable[str] = tuple(PARTS)) -> Outcome:
    """Never raises. With `only` the others, whose weights may follow from this one's, are left for later."""
    return _written(_orders(ctx, only, parts))


async def enforce_aside(ctx: Context) -> Outcome:
    """Of VMs that run: beside the event loop, since the kernel takes from a group what is above a new limit
    of its memory before the write returns. One at a time, or an older decision might be written last."""
    async with ctx.qos_turn:
        orders = _orders(ctx)
        try:
            return await aside(partial(_written, orders), DEADLINE_S)
        except TimeoutError:
            late = f"not known: the kernel is still at it after {DEADLINE_S:g} s"
            return {order.uid: dict.fromkeys(PARTS, late) for order in orders}


def _orders(ctx: Context, only: str | None = None, parts: Iterable[str] = tuple(PARTS)) -> list[_Order]:
    return [
        _Order(uid, part, ctx.cgroups.get(uid), settings)
        for part in parts
        for uid, settings in PARTS[part](ctx).items()
        if only in (None, uid)
    ]


def _written(orders: Iterable[_Order]) -> Outcome:
    found: Outcome = {}
    for order in orders:
        found.setdefault(order.uid, {})[order.part] = _outcome(order)
    return found


def _outcome(order: _Order) -> str:
    if isinstance(order.settings, str):
        return order.settings
    if not order.settings:
        return ""
    if order.group is None:
        return "it has no control group"
    try:
        return "" if order.group.write(*order.settings) else "its control group was removed"
    except InnkeeperError as error:
        return error.message
