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
from innkeeper.spec.instance import InstanceRecord, InstanceSpec

Fit = Callable[[Context, InstanceRecord, Running], Awaitable[None]]
# Each with what it is about. It raises when the guest does not play along; the others are tried all the same.
_FITS: Final[tuple[tuple[Fit, Callable[[InstanceSpec], object]], ...]] = (
    (fit_qos, lambda spec: (spec.qos, spec.memory, spec.cpu)),
    (fit_disks, lambda spec: (spec.qos.disk, spec.disks)),
    (fit_vcpus, lambda spec: spec.cpu),
    (fit_memory, lambda spec: spec.memory),
    (fit_pins, lambda spec: spec.cpu),
    (fit_balloon, lambda spec: (spec.qos.memory, spec.memory)),
    (devices.note, lambda spec: (spec.cpu, spec.memory)),
)


async def change(ctx: Context, record: InstanceRecord) -> None:
    """Raises the first refusal. It is not tried again by itself: whoever wants it repeats the verb. What was
    done for this process is not looked at again: each look asks a QEMU whose CPUs may be busy."""
    running = ctx.running[record.uid]
    ctx.checkpoint("change.begun")
    machine, fitted = running.machine, running.fitted
    running.fitted = None
    failures: list[InnkeeperError] = []
    for fit, part in _FITS:
        if fitted is not None and fitted[0] is machine and part(fitted[1]) == part(record.spec):
            continue
        try:
            await fit(ctx, record, running)
        except InnkeeperError as error:
            failures.append(error)
        if record.uid not in ctx.running:
            return  # it ended meanwhile
    ctx.checkpoint("change.fitted")
    await ctx.publish(record, changed=record.wanted.change)
    ctx.checkpoint("change.done")
    if failures:
        raise failures[0]
    running.fitted = machine, record.spec
