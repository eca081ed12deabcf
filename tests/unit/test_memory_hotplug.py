"""Memory given to a running VM and taken back: the agent with a fake engine."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from fakes.world import World
from helpers import run
from innkeeper.agent.ops import memory
from innkeeper.api.verbs.set import set_
from innkeeper.engine import plan_file
from innkeeper.errors import Failed, GuestTimeout, NoCapacity, Unsupported, WrongState
from innkeeper.guest import memory as guest_memory
from innkeeper.spec.instance import InstanceSpec, InstanceStatus, InstanceUpdate
from innkeeper.spec.livechange import effects
from innkeeper.spec.memory import Memory, MemoryNow, steps
from innkeeper.units import GiB, MiB

SPEC = {"memory": {"size": "256MiB", "max": "1GiB"}}


async def sized(world: World, size: str) -> Any:
    return await set_(world.repo, "web", InstanceUpdate.model_validate({"memory": {"size": size}}))


class FakeGuest:
    """What a guest with an agent does with its memory; addresses are those of the fake machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prepared = False
        self.available = 8 * GiB
        self.stuck: set[int] = set()  # slots of modules that it cannot empty
        self.offline: set[int] = set()
        self.uses = True
        for name in ("prepare", "bring_online", "take_offline", "available_bytes"):
            monkeypatch.setattr(memory, name, getattr(self, name))

    @staticmethod
    def slot(place: tuple[int, int]) -> int:
        return (place[0] - 4 * GiB) // place[1]

    async def prepare(self, agent: object) -> None:
        self.prepared = True

    async def bring_online(self, agent: object, ranges: list[tuple[int, int]], deadline_s: float) -> int:
        self.offline -= {self.slot(one) for one in ranges}
        return sum(size for _, size in ranges) if self.uses else 0

    async def take_offline(self, agent: object, place: tuple[int, int], seconds: int) -> bool:
        self.offline.add(self.slot(place))
        return self.slot(place) not in self.stuck

    async def available_bytes(self, agent: object) -> int:
        return self.available


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> FakeGuest:
    return FakeGuest(monkeypatch)


def test_more_and_less(tmp_path: Path, guest: FakeGuest) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon():
            await world.create(spec=SPEC)
            world.machine().agent_open = True
            view = await sized(world, "768MiB")
            assert guest.prepared, "what comes online by itself must not be the kernel's own"
            assert set(world.machine().modules) == {0, 1, 2, 3}
            assert view.status.memory == MemoryNow(
                size=768 * MiB, start=256 * MiB, most=1024 * MiB, step=128 * MiB
            )
            plan = plan_file.load(world.paths.runtime(view.record.uid))
            assert plan is not None and plan.ram_bytes == 768 * MiB, "a fork must have as much"
            assert [piece.id for piece in plan.pieces][:2] == ["ram0", "ram-dimm0"]
            assert all(dimm.address is not None for dimm in plan.memory.dimms)
        async with world.daemon():  # the next daemon knows it, too
            assert (await world.repo.view("web")).status.memory.size == 768 * MiB
            view = await sized(world, "384MiB")
            assert set(world.machine().modules) == {0} and view.status.memory.size == 384 * MiB
            calls = [one for one in world.engine.calls if "plug_dimm" in one]
            await sized(world, "384MiB")
            assert [one for one in world.engine.calls if "plug_dimm" in one] == calls, (
                "nothing was left to do"
            )

    run(scenario())


def test_a_guest_that_cannot_empty_a_module(tmp_path: Path, guest: FakeGuest) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon():
            await world.create(spec=SPEC)
            machine = world.machine()
            machine.agent_open = True
            await sized(world, "768MiB")
            guest.stuck = {3, 1}
            # One module that cannot be emptied does not keep the others there.
            view = await sized(world, "512MiB")
            assert set(machine.modules) == {1, 3} and view.status.failure is None
            asked = world.engine.calls.count("unplug_dimm web")
            with pytest.raises(GuestTimeout, match="did not give up 256 MiB of its memory") as caught:
                await sized(world, "256MiB")
            assert "it keeps 512MiB for now" in caught.value.hint
            assert world.engine.calls.count("unplug_dimm web") == asked, "nobody can call an ejection off"
            assert not guest.offline & set(machine.modules), "what it keeps it uses"
            view = await world.repo.view("web")
            assert view.status.state == "running" and view.status.memory.size == 512 * MiB
            # Whoever wants it repeats the verb, with the same value.
            guest.stuck = set()
            view = await sized(world, "256MiB")
            assert not machine.modules and view.status.failure is None

    run(scenario())


def test_a_guest_that_refuses_the_ejection(
    tmp_path: Path, guest: FakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SHRINK_DEADLINE_S", 0.3)

    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon():
            await world.create(spec=SPEC)
            machine = world.machine()
            machine.agent_open = True
            await sized(world, "512MiB")
            machine.keeps_dimms = {0, 1}
            for says_so in (True, False):
                machine.silent_on_dimms = not says_so
                with pytest.raises(GuestTimeout, match="did not give up 256 MiB"):
                    await sized(world, "256MiB")
                assert not guest.offline and set(machine.modules) == {0, 1}
            assert (await world.repo.view("web")).status.memory.size == 512 * MiB

    run(scenario())


def test_a_guest_that_needs_its_memory_is_not_asked(tmp_path: Path, guest: FakeGuest) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon():
            await world.create(spec=SPEC)
            machine = world.machine()
            machine.agent_open = True
            await sized(world, "768MiB")
            guest.available = 300 * MiB
            with pytest.raises(
                Failed, match="512 MiB of memory, and its guest has 300 MiB available"
            ) as caught:
                await sized(world, "256MiB")
            assert "it keeps 768MiB" in caught.value.hint and "512MiB would do now" in caught.value.hint
            guest.available = 130 * MiB
            with pytest.raises(Failed) as caught:
                await sized(world, "256MiB")
            assert "would do" not in caught.value.hint
            assert not guest.offline and len(machine.modules) == 4
            machine.agent_open = False
            with pytest.raises(Unsupported, match="no guest agent answers"):
                await sized(world, "256MiB")
            assert len(machine.modules) == 4
            assert (await world.repo.view("web")).status.memory.size == 768 * MiB

    run(scenario())


def test_a_guest_that_does_not_use_what_it_got(tmp_path: Path, guest: FakeGuest) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon():
            await world.create(spec=SPEC)
            view = await sized(world, "384MiB")
            assert view.status.note == memory.NO_AGENT_NOTE and view.status.memory.size == 384 * MiB
            world.machine().agent_open = True
            guest.uses = False
            with pytest.raises(GuestTimeout, match="uses 0 B of it"):
                await sized(world, "512MiB")

    run(scenario())


def test_a_guest_that_boots_gets_nothing_yet(tmp_path: Path, guest: FakeGuest) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon():
            await world.create(spec={**SPEC, "wait_for_agent": True})
            machine = world.machine()
            machine.agent_open = False
            with pytest.raises(WrongState, match="may not have booted"):
                await sized(world, "512MiB")
            assert not machine.modules
            machine.agent_open = True
            assert (await sized(world, "512MiB")).status.memory.size == 512 * MiB

    run(scenario())


class Sysfs:
    """Memory blocks of 128 MiB as files, and the scripts that a guest's shell gets, run by this one."""

    def __init__(self, root: Path, states: dict[int, str], policy: str = "") -> None:
        self.root = root / "memory"
        self.policy = root / "online_policy"
        self.root.mkdir()
        (self.root / "block_size_bytes").write_text("8000000\n")
        (self.root / "auto_online_blocks").write_text("online\n")
        if policy:
            self.policy.write_text(policy + "\n")
        for number, state in states.items():
            (self.root / f"memory{number}").mkdir()
            if state == "stuck":
                (self.root / f"memory{number}/state").mkdir()
            else:
                (self.root / f"memory{number}/state").write_text(state + "\n")

    def sh(self, script: str, *args: int) -> str:
        script = script.replace(guest_memory.BLOCKS_DIRECTORY, str(self.root))
        script = script.replace(guest_memory.POLICY_FILE, str(self.policy))
        command = ["sh", "-c", script, "sh", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    def state(self, number: int) -> str:
        return (self.root / f"memory{number}/state").read_text().strip()


BLOCK = 128 * MiB


@pytest.mark.parametrize(
    ("policy", "auto", "after"),
    [
        ("contig-zones", "online", ("auto-movable", "online")),
        ("contig-zones", "offline", ("auto-movable", "offline")),
        ("contig-zones", "online_kernel", ("contig-zones", "online_kernel")),
        ("", "online", ("", "online_movable")),  # before Linux 5.15
        ("", "offline", ("", "offline")),
    ],
)
def test_what_is_plugged_can_be_emptied(
    tmp_path: Path, policy: str, auto: str, after: tuple[str, str]
) -> None:
    sysfs = Sysfs(tmp_path, {}, policy)
    (sysfs.root / "auto_online_blocks").write_text(auto + "\n")
    sysfs.sh(guest_memory.PREPARE)
    seen = sysfs.policy.read_text().strip() if policy else ""
    assert (seen, (sysfs.root / "auto_online_blocks").read_text().strip()) == after


@pytest.mark.parametrize(("policy", "word"), [("auto-movable", "online"), ("", "online_movable")])
def test_blocks_are_brought_online(tmp_path: Path, policy: str, word: str) -> None:
    sysfs = Sysfs(tmp_path, {0: "online", 32: "offline", 33: "online", 40: "offline"}, policy)
    # Files do not turn "online_movable" into "online" as the kernel does: a second look counts only that.
    seen = sysfs.sh(guest_memory.ONLINE, 32 * BLOCK, 2 * BLOCK, 50 * BLOCK, BLOCK)
    assert int(seen) == (2 if word == "online" else 1) * BLOCK
    assert (sysfs.state(32), sysfs.state(40)) == (word, "offline"), "other blocks are not ours"


def test_blocks_are_taken_offline(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path, {0: "online", 32: "online", 33: "offline", 34: "online", 35: "stuck"})
    assert sysfs.sh(guest_memory.OFFLINE, 5, 32 * BLOCK, 2 * BLOCK) == "given"
    assert [sysfs.state(number) for number in (0, 32, 33, 34)] == ["online", "offline", "offline", "online"]
    assert sysfs.sh(guest_memory.OFFLINE, 5, 34 * BLOCK, 2 * BLOCK) == "kept"


def test_a_block_that_never_empties_is_let_go_of(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path, {32: "stuck"})
    (sysfs.root / "memory32/state").rmdir()
    os.mkfifo(sysfs.root / "memory32/state")
    # Opening it to write stands still, as the kernel does over a page in use, until a signal comes; then one
    # look is answered.
    script = guest_memory.OFFLINE.replace("read -r state <memory$n/state\n      [", "state=online; [")
    script = script.replace("state=; read -r state <memory$n/state", "state=online")
    began = time.monotonic()
    assert sysfs.sh(script, 1, 32 * BLOCK, BLOCK) == "kept"
    assert 0.9 < time.monotonic() - began < 5


def test_what_the_host_does_not_have(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon():
            await world.create(spec=SPEC)
            world.host.available = 300 * MiB
            with pytest.raises(NoCapacity, match="512 MiB more memory, and 300 MiB is available"):
                await sized(world, "768MiB")
            assert not world.machine().modules

    run(scenario())


def test_what_waits_for_the_next_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon():
            await world.create(spec=SPEC)
            for size, told in (
                ("300MiB", "grows in steps of 128MiB"),
                ("128MiB", "started with 256MiB, and cannot shrink below that"),
            ):
                with pytest.raises(Unsupported, match=told):
                    await sized(world, size)
            with pytest.raises(ValueError, match="2GiB of memory are more than the 1GiB that"):
                await sized(world, "2GiB")

    run(scenario())


def test_one_that_is_given_up_late_is_noticed(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon() as ctx:
            await world.create(spec=SPEC)
            await sized(world, "512MiB")
            machine = world.machine()
            await machine.unplug_dimm((await machine.dimms())[-1])
            for _ in range(100):
                if ctx.statuses[machine.plan.uid].memory.size == 384 * MiB:
                    break
                await world.ctx.clock.sleep(0.01)
            assert ctx.statuses[machine.plan.uid].memory.size == 384 * MiB

    run(scenario())


@pytest.mark.parametrize(
    ("most", "size", "expected"),
    [
        (None, 256 * MiB, (0, 128 * 0)),
        (1 * GiB, 256 * MiB, (6, 128 * MiB)),
        (1 * GiB, 1 * GiB, (0, 128 * MiB)),
        (16 * GiB, 1 * GiB, (30, 512 * MiB)),
        (128 * GiB, 64 * GiB, (32, 2 * GiB)),
    ],
)
def test_steps(most: int | None, size: int, expected: tuple[int, int]) -> None:
    made = Memory(size=size, max=most)
    assert steps(made, size) == expected
    assert size + expected[0] * expected[1] <= (most or size)


def test_of_a_vm_without_room_it_waits_for_the_next_start() -> None:
    spec = InstanceSpec.model_validate({"image": "tiny", "memory": {"size": "512MiB"}})
    status = InstanceStatus(cpus=1, memory=MemoryNow(size=256 * MiB, start=256 * MiB, most=256 * MiB))
    assert "without memory.max" in effects(("memory.size",), spec, status).later["memory.size"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"machine": {"type": "microvm"}}, "takes no memory while it runs"),
        ({"numa": {"nodes": [{"cpus": "0", "memory": "256MiB"}]}}, "leave out memory.max"),
        ({"memory": {"size": "2GiB", "max": "1GiB"}}, "more than the 1GiB"),
    ],
)
def test_room_that_cannot_be(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        InstanceSpec.model_validate({"image": "tiny", **SPEC, **fields})
