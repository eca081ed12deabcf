"""A guest whose agent's port opens: it is told who it is once, and its addresses are followed until they
stay the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from helpers import run
from innkeeper.agent import watching
from innkeeper.agent.watching import Watcher
from innkeeper.clock import SystemClock
from innkeeper.engine.base import EventKind
from innkeeper.engine.fake import FakeEngine, FakeMachine
from innkeeper.engine.memory import PLAIN_MEMORY
from innkeeper.spec.instance import InstanceStatus


class _Agent:
    """Answers with one set of addresses after the other, the last for ever."""

    def __init__(self, *looks: tuple[str, ...]) -> None:
        self._looks = list(looks)
        self.asked = 0

    async def ping(self) -> None:
        await asyncio.sleep(0)

    async def network_interfaces(self) -> list[Any]:
        self.asked += 1
        look = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        return [SimpleNamespace(address=address) for address in look]

    async def close(self) -> None:
        pass


class _World:
    """What a Watcher needs of a context, and what it published."""

    def __init__(self, agent: _Agent, monkeypatch: pytest.MonkeyPatch) -> None:
        self.record: Any = SimpleNamespace(uid="uid", name="vm", fork=None)
        plan: Any = SimpleNamespace(uid="uid", name="vm", epoch=1, cpus=1, memory=PLAIN_MEMORY, disks=())
        self.machine = FakeMachine(plan, FakeEngine(), 1, agent_open=True)
        self.statuses = {"uid": InstanceStatus(started_at=1.0)}
        self.clock = SystemClock()
        self.paths: Any = SimpleNamespace(instance=lambda uid: SimpleNamespace(console_log="/nowhere"))
        self.running: Any = SimpleNamespace(
            machine=self.machine,
            agent=agent,
            plan=SimpleNamespace(parked=0),
            console_offset=0,
            woken=False,
            woke_at=1.0,
            gone=asyncio.Event(),
            at_rest=asyncio.Event(),
        )
        self.running.at_rest.set()
        self.published: list[dict[str, Any]] = []
        self.assumed = 0
        self.may_end = asyncio.Event()
        monkeypatch.setattr(Watcher, "_assume_identity", self._assume)

    async def publish(self, record: Any, **changes: Any) -> None:
        self.published.append(changes)
        self.statuses["uid"] = self.statuses["uid"].model_copy(update=changes)

    async def _assume(self, times: dict[str, float]) -> str:
        self.assumed += 1
        await self.may_end.wait()
        return ""

    def watcher(self) -> Watcher:
        context: Any = self
        return Watcher(context, self.record, self.running, lambda record: None)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(watching, "ADDRESS_LOOKS_S", (0.0,) * 6)
    yield


async def _turns(count: int = 30) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_port_that_is_open_and_says_so_is_greeted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        world = _World(_Agent(("10.0.0.2",)), monkeypatch)
        watcher = world.watcher()
        await _turns()
        world.machine.emit(EventKind.AGENT_OPENED)
        await _turns()
        assert world.assumed == 1
        world.may_end.set()
        await _turns()
        assert world.statuses["uid"].ready and world.statuses["uid"].addresses == ("10.0.0.2",)
        await watcher.close()

    run(story())


def test_an_agent_that_was_started_again_meanwhile_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        world = _World(_Agent(("10.0.0.2",)), monkeypatch)
        watcher = world.watcher()
        await _turns()
        world.machine.emit(EventKind.AGENT_CLOSED)
        await _turns()
        assert not world.statuses["uid"].ready and not world.statuses["uid"].agent
        world.machine.emit(EventKind.AGENT_OPENED)
        await _turns()
        assert world.assumed == 2
        world.may_end.set()
        await _turns()
        assert world.statuses["uid"].ready and world.statuses["uid"].agent
        await watcher.close()

    run(story())


def test_addresses_are_looked_at_until_they_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        agent = _Agent((), ("fe80::1",), ("10.0.0.2", "fe80::1"), ("10.0.0.2", "fe80::1"), ("never",))
        world = _World(agent, monkeypatch)
        world.may_end.set()
        watcher = world.watcher()
        await _turns(100)
        told = [changes["addresses"] for changes in world.published if "addresses" in changes]
        assert told == [("fe80::1",), ("10.0.0.2", "fe80::1")]
        assert agent.asked == 4
        await watcher.close()

    run(story())
