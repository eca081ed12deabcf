"""Guest commands that are cancelled, or whose guest goes away or hangs: nothing stays behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from guest_exec_play import ended, finish, leftovers, play

from fakes.qga import FakeQga
from helpers import run
from innkeeper.errors import AgentMissing, Failed, GuestTimeout
from innkeeper.guest import session as session_module
from innkeeper.guest.agent import GuestAgent
from innkeeper.guest.exec import ExecRequest, open_exec


@pytest.mark.parametrize("script", ["sleep 60", "sleep 60 & sleep 60", "trap '' TERM; sleep 60; sleep 60"])
@pytest.mark.parametrize("stdin", [False, True])
def test_cancel_leaves_nothing(tmp_path: Path, script: str, stdin: bool) -> None:
    async def scenario(_: FakeQga, agent: GuestAgent) -> None:
        whole = f"echo $$; {script}"
        session = await open_exec(agent, ExecRequest(["sh", "-c", whole], stdin=stdin))
        # More than there is room for while nobody reads it.
        writing = asyncio.create_task(session.write(b"x" * 2_500_000)) if stdin else None
        _, data = await anext(aiter(session))
        await asyncio.sleep(0.1 if stdin else 0)
        waiting = asyncio.create_task(session.wait())
        await session.cancel()
        assert await ended(int(data))
        await session.cancel()
        with pytest.raises(Failed, match="cancelled"):
            await waiting
        if writing:
            await writing

    play(tmp_path, scenario)


def test_cancel_while_somebody_reads(tmp_path: Path) -> None:
    async def scenario(_: FakeQga, agent: GuestAgent) -> None:
        session = await open_exec(agent, ExecRequest(["sh", "-c", "echo a; sleep 60"]))
        reading = asyncio.create_task(finish(session))
        await asyncio.sleep(0.3)
        await session.cancel()
        with pytest.raises(Failed, match="cancelled"):
            await reading

    play(tmp_path, scenario)


def test_a_task_that_is_cancelled_ends_its_command(tmp_path: Path) -> None:
    async def scenario(_: FakeQga, agent: GuestAgent) -> None:
        seen: list[bytes] = []

        async def work() -> None:
            async with await open_exec(agent, ExecRequest(["sh", "-c", "echo $$; sleep 60"])) as session:
                async for _, data in session:
                    seen.append(data)

        working = asyncio.create_task(work())
        while not seen:
            await asyncio.sleep(0.01)
        working.cancel()
        await asyncio.wait([working])
        assert working.cancelled()
        assert await ended(int(seen[0]))

    play(tmp_path, scenario)


def test_a_guest_that_restarted_no_longer_knows_the_command(tmp_path: Path) -> None:
    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        session = await open_exec(agent, ExecRequest(["sleep", "60"]))
        await fake.forget_children()
        with pytest.raises(Failed, match="restarted"):
            await finish(session)
        with pytest.raises(Failed, match="restarted"):
            await session.wait()
        for path in leftovers(fake):
            path.unlink()  # nobody was left to do it

    play(tmp_path, scenario)


def test_cancel_of_a_command_that_ended_unread_spares_its_process_id(tmp_path: Path) -> None:
    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        session = await open_exec(agent, ExecRequest(["true"]))
        await asyncio.sleep(0.2)
        started = fake.calls.count("guest-exec")
        await session.cancel()
        assert fake.calls.count("guest-exec") == started + 1
        assert not any("kill" in text for text in fake.scripts[-1:])

    play(tmp_path, scenario)


def test_the_vm_ends_meanwhile(tmp_path: Path) -> None:
    async def scenario() -> None:
        agent = GuestAgent(tmp_path / "qga.sock")
        async with FakeQga(tmp_path / "qga.sock") as fake:
            session = await open_exec(agent, ExecRequest(["sleep", "60"]))
            reading = asyncio.create_task(finish(session))
            await asyncio.sleep(0.2)
        with pytest.raises(AgentMissing):
            await reading
        with pytest.raises(AgentMissing):
            await session.wait()
        await session.cancel()
        await agent.close()
        for path in leftovers(fake):
            path.unlink()  # the fake guest was killed, not its disk

    run(scenario())


def test_a_hung_guest_does_not_hold_up_a_cancel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "CANCEL_DEADLINE_S", 0.2)

    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        session = await open_exec(agent, ExecRequest(["true"]))
        fake.delays_s["guest-exec"] = 1.0
        with pytest.raises(GuestTimeout, match="may still run"):
            await session.cancel()
        fake.delays_s.clear()
        await agent.ping(deadline_s=5)
        await fake.forget_children()

    play(tmp_path, scenario)
