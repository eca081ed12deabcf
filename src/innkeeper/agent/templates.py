"""The moment a template stands still at: its parts, and borrowing it to start copies from.

Its RAM is with its QEMU, which waits for a state that it may never be given; the rest lies in its runtime
directory and goes with it. So nothing of it is left after the template's end, and a daemon that is started
anew finds it as it was.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from innkeeper.agent import chains
from innkeeper.agent.context import Context
from innkeeper.agent.moments import Taken
from innkeeper.engine.base import LaunchPlan, Layer, Moment
from innkeeper.errors import Failed
from innkeeper.paths import RuntimeFiles
from innkeeper.spec.instance import ForkOrigin


def token_of(files: RuntimeFiles) -> str:
    """Which moment a template with these files stands still at; empty: it is none, or was not finished."""
    try:
        return files.moment.token.read_text()
    except OSError:
        return ""


def write(files: RuntimeFiles, token: str, disks: dict[str, tuple[Layer, ...]]) -> None:
    """Its device state is there already. From here on it counts."""
    chains.write(files.moment, disks)
    draft = files.moment.token.with_suffix(".tmp")
    draft.write_text(token)
    os.replace(draft, files.moment.token)


@contextlib.contextmanager
def borrowed(ctx: Context, origin: ForkOrigin) -> Iterator[Taken]:
    """The moment of the template that a copy is made from. Raises Failed when it is over."""
    running = ctx.running.get(origin.parent_uid)
    files = ctx.paths.runtime(origin.parent_uid)
    if running is None or running.plan is None or token_of(files) != origin.moment:
        raise Failed(f"{origin.parent} is not a template any more", hint="see inn list")
    plan: LaunchPlan = running.plan
    memory = running.machine.share_ram()
    try:
        disks = chains.read(files.moment)
        taken = Taken(plan, Moment(memory, files.moment.device_state), disks, files.moment.directory)
        taken.ready.set()
        yield taken
    finally:
        memory.close()
