"""Make a running VM as its spec says now, as far as that can be done while it runs.

What may change live is said in spec/livechange.py; each entry there that acts has its operation in `_FITS`.
An operation looks at what there is and does what is missing, so after a crash in the middle, or when it was
given up for a newer wish, the step just begins again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from innkeeper.agent import devices
from innkeeper.agent.context import Context, Running
from innkeeper.agent.ops.balloon import fit_balloon
from innkeeper.agent.ops.disklimits import fit_disks
from innkeeper.agent.ops.memory import fit_memory
from innkeeper.agent.ops.pinning import fit_pins
from innkeeper.agent.ops.qos import fit_qos
from innkeeper.agent.ops.vcpus import fit_vcpus
from innkeeper.errors import InnkeeperError
from innkeeper.spec.instance import InstanceRecord

Fit = Callable[[Context, InstanceRecord, Running], Awaitable[None]]
# Each raises when the guest does not play along; the others are tried all the same.
_FITS: Final[tuple[Fit, ...]] = (fit_qos, fit_disks, fit_vcpus, fit_memory, fit_pins, fit_balloon)


async def change(ctx: Context, record: InstanceRecord) -> None:
    """Raises the first refusal. It is not tried again by itself: whoever wants it repeats the verb."""
    running = ctx.running[record.uid]
    ctx.checkpoint("change.begun")
    failures: list[InnkeeperError] = []
    for fit in _FITS:
        try:
            await fit(ctx, record, running)
        except InnkeeperError as error:
            failures.append(error)
        if record.uid not in ctx.running:
            return  # it ended meanwhile
    ctx.checkpoint("change.fitted")
    await devices.note(ctx, record, running)
    await ctx.publish(record, changed=record.wanted.change)
    ctx.checkpoint("change.done")
    if failures:
        raise failures[0]
