"""A hand-over that was cut by the end of its daemon: which of the two processes is the VM?

Both can hold it without harm: the old one still has everything as it was when it was halted, and what the
new one writes goes elsewhere. So the new one is the VM only if it surely took over, that is, has the state.
"""

from __future__ import annotations

import contextlib
from typing import Final

from innkeeper.engine.qemu import state
from innkeeper.engine.qemu.machine import QemuMachine
from innkeeper.errors import EngineError

# Longer than for a VM that is alone: here an answer decides.
ANSWER_DEADLINE_S: Final = 5.0


async def survivor(old: QemuMachine, new: QemuMachine) -> QemuMachine:
    """The one that is the VM; the other has been ended."""
    with contextlib.suppress(EngineError):
        await state.abandon(await old.answering(ANSWER_DEADLINE_S))
    try:
        took_over = await state.arrived(await new.answering(ANSWER_DEADLINE_S))
    except EngineError:
        took_over = False
    winner, loser = (new, old) if took_over else (old, new)
    await loser.kill()
    await loser.detach()
    return winner
