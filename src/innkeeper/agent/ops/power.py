"""Pause, resume, stop and kill a running VM."""

from __future__ import annotations

import asyncio
import contextlib

from innkeeper.agent.context import Context, Running
from innkeeper.engine.base import RunState
from innkeeper.errors import EngineError, GuestTimeout, InnkeeperError
from innkeeper.spec.instance import InstanceRecord, State
from innkeeper.units import human_duration

# The agent is asked first; one that does not answer within this is not waited for.
AGENT_DEADLINE_S = 5.0
# Guests that were still booting when the button was pressed get another press.
PRESS_AGAIN_S = 10.0
# SIGTERM, SIGKILL and their graces, with room; longer means a process stuck in the kernel.
KILL_DEADLINE_S = 15.0


async def pause(ctx: Context, record: InstanceRecord) -> None:
    await ctx.running[record.uid].machine.pause()
    await ctx.publish(record, state=State.PAUSED)
    ctx.checkpoint("pause.done")


async def resume(ctx: Context, record: InstanceRecord) -> None:
    running = ctx.running[record.uid]
    if await running.machine.run_state() is RunState.SHUT_DOWN:
        raise EngineError(
            f"{record.name} has shut down already", hint=f"start it again: inn restart {record.name}"
        )
    await running.machine.resume()
    await ctx.publish(record, state=State.RUNNING, note="")
    ctx.checkpoint("resume.done")


async def stop(ctx: Context, record: InstanceRecord) -> None:
    """Ask the guest to shut down and wait for it, up to the deadline; then GuestTimeout, and it goes on."""
    running, timeout_s = ctx.running[record.uid], record.wanted.stop_timeout_s
    ctx.checkpoint("stop.begun")
    before, again = ctx.statuses[record.uid].state, False
    await ctx.publish(record, state=State.STOPPING)
    running.asked_to_end = "stopped"
    try:
        async with asyncio.timeout(timeout_s):
            if before is State.PAUSED:
                await running.machine.resume()  # a guest that stands still cannot shut down
            ended = asyncio.ensure_future(running.gone.wait())
            try:
                while not ended.done():
                    await _ask(ctx, record)
                    ctx.checkpoint("stop.asked")
                    await asyncio.wait([ended], timeout=PRESS_AGAIN_S)
            finally:
                ended.cancel()
    except BaseException as error:
        if not isinstance(error, Exception) or record.uid in ctx.running:
            running.asked_to_end = ""
            # Given up for another verb, its state is that verb's to decide.
            again = before is State.PAUSED and isinstance(error, Exception) and await _paused_again(running)
            await ctx.publish(record, state=State.PAUSED if again else State.RUNNING)
        if isinstance(error, TimeoutError):
            still = "it is paused again" if again else "it still runs"
            raise GuestTimeout(
                f"{record.name} did not shut down within {human_duration(timeout_s)}",
                hint=f"{still}; give it longer (--timeout), or end it: inn kill {record.name}",
            ) from None
        raise
    ctx.checkpoint("stop.ended")


async def _paused_again(running: Running) -> bool:
    with contextlib.suppress(InnkeeperError):
        await running.machine.pause()
        return True
    return False


async def _ask(ctx: Context, record: InstanceRecord) -> None:
    """Through the agent where one answers, else by the power button."""
    running = ctx.running.get(record.uid)
    if running is None:
        return
    if running.machine.agent_open:
        with contextlib.suppress(InnkeeperError, TimeoutError):
            await asyncio.wait_for(running.agent.shutdown(), AGENT_DEADLINE_S)
            return
    await running.machine.power_button()


async def kill(ctx: Context, record: InstanceRecord) -> None:
    running = ctx.running[record.uid]
    ctx.checkpoint("kill.begun")
    running.asked_to_end = "saved" if record.wanted.saved else "killed"
    await running.machine.kill()
    await asyncio.wait_for(running.gone.wait(), KILL_DEADLINE_S)
    ctx.checkpoint("kill.ended")
