"""What the agent relies on of any engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from engine_harness import Bench, Scenario, ended, shortly

from innkeeper.engine.base import EventKind, RunState
from innkeeper.engine.fake import FakeEngine, FakeMachine
from innkeeper.errors import EngineError, InnkeeperError, Refused, StartFailed
from innkeeper.paths import RuntimeFiles
from vms import bootables

Play = Callable[[Scenario], None]


def test_launch_run_kill(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        plan = bench.plan()
        before = time.time()
        machine = await bench.begin(plan)
        assert await machine.run_state() is RunState.RUNNING
        assert machine.epoch == 3 and machine.accelerator == "tcg" and machine.version
        assert bench.running() == {plan.uid: machine.pid}
        if bench.real:
            assert before <= machine.started_at <= time.time()
            assert set(machine.times_ms) >= {"spawn", "monitor"}
        await machine.kill()
        assert bench.running() == {}
        await ended(machine)
        how = await machine.wait_exit()
        assert how.status is not None

    play(scenario)


def test_pause_and_resume(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        machine = await bench.begin(bench.plan())
        await machine.pause()
        assert await machine.run_state() is RunState.PAUSED
        await machine.resume()
        assert await machine.run_state() is RunState.RUNNING
        await machine.kill()

    play(scenario)


def test_launched_paused(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        machine = await bench.begin(bench.plan(paused=True))
        assert await machine.run_state() is RunState.PAUSED
        await machine.kill()

    play(scenario)


def test_a_guest_that_shuts_down_ends_its_machine(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        machine = await bench.begin(bench.plan("shutdown"))
        bench.shut_down_guest(machine)
        events = await ended(machine)
        causes = [event.detail for event in events if event.kind is EventKind.SHUTDOWN]
        assert causes == ["guest-shutdown"]
        how = await machine.wait_exit()
        assert (how.status, how.shutdown_cause) == (0, "guest-shutdown")

    play(scenario)


def test_a_guest_that_minds_the_power_button_shuts_down(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        plan = bench.plan("button")
        machine = await bench.begin(plan)
        if bench.real:
            await shortly(lambda: bootables.GREETING.encode() in plan.console_log.read_bytes(), "it booted")
        await machine.power_button()
        await ended(machine)
        assert (await machine.wait_exit()).shutdown_cause == "guest-shutdown"

    play(scenario)


def test_threads_and_counters(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        machine = await bench.begin(bench.plan("read", cpus=2))
        ids, before = await machine.thread_ids(), await machine.counters()
        assert before.kvm is None and before.balloon_bytes is None
        if bench.real:
            names = [Path(f"/proc/{machine.pid}/task/{tid}/comm").read_text().strip() for tid in ids.vcpus]
            assert names == ["CPU 0/TCG", "CPU 1/TCG"]
            assert list(ids.iothreads) == ["disks"]
            assert [disk.name for disk in before.disks] == ["root"]
            end = time.monotonic() + 20.0
            while (now := (await machine.counters()).disks[0]).read_ops < before.disks[0].read_ops + 10:
                assert time.monotonic() < end, "the guest reads its disk"
                await asyncio.sleep(0.02)
            assert now.read_bytes == 512 * now.read_ops and now.write_ops == 0
        await machine.kill()
        for question in (machine.thread_ids, machine.counters):
            with pytest.raises(EngineError):
                await question()

    play(scenario)


def test_commands_to_a_machine_that_is_gone_fail(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        machine = await bench.begin(bench.plan())
        await machine.kill()
        await ended(machine)
        for command in (machine.pause, machine.resume, machine.power_button, machine.run_state):
            with pytest.raises(EngineError):
                await command()
        await machine.kill()  # gone already: as good

    play(scenario)


def test_a_failing_launch_leaves_nothing(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        plan = bench.break_launch(bench.plan())
        with pytest.raises(StartFailed, match=r"(?i)unsupported machine type"):
            await bench.begin(plan)
        assert bench.running() == {}
        assert not bench.files(plan).directory.exists()

    play(scenario)


def test_adopted_after_the_first_daemon_let_go(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        plan = bench.plan()
        first = await bench.begin(plan)
        pid = first.pid
        await first.detach()
        assert bench.running() == {plan.uid: pid}
        second = await bench.engine.adopt(plan.uid, pid, bench.files(plan))
        assert (second.pid, second.epoch, second.accelerator) == (pid, 3, "tcg")
        assert await second.run_state() is RunState.RUNNING
        await second.kill()
        assert bench.running() == {}
        await ended(second)

    play(scenario)


def test_letting_go_ends_the_events(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        machine = await bench.begin(bench.plan())
        events = asyncio.create_task(_all_kinds(machine))
        await asyncio.sleep(0)
        await machine.detach()
        kinds = await asyncio.wait_for(events, 5)
        assert EventKind.ENDED not in kinds
        await bench.engine.destroy_stray(machine.pid)

    play(scenario)


async def _all_kinds(machine: object) -> list[EventKind]:
    return [event.kind async for event in machine.events()]  # type: ignore[attr-defined]


def test_one_that_hangs_is_adopted_and_can_be_killed(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        plan = bench.plan()
        first = await bench.begin(plan)
        await first.detach()
        bench.hang(first)
        begun = time.monotonic()
        machine = await bench.engine.adopt(plan.uid, first.pid, bench.files(plan))
        assert time.monotonic() - begun < 1.0, "one that hangs must not hold up a daemon's start"
        with pytest.raises(EngineError):
            await machine.run_state()
        await machine.kill()
        assert bench.running() == {}
        await ended(machine)

    play(scenario)


def test_one_that_hung_answers_again(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        plan = bench.plan()
        first = await bench.begin(plan)
        await first.detach()
        bench.hang(first)
        machine = await bench.engine.adopt(plan.uid, first.pid, bench.files(plan))
        if isinstance(bench.engine, FakeEngine):
            bench.engine.machines[plan.uid].hang = False
        else:
            os.kill(first.pid, 18)  # SIGCONT
        assert await machine.run_state() is RunState.RUNNING
        await machine.pause()
        await machine.kill()
        await ended(machine)

    play(scenario)


def test_strays_are_ended(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        machine = await bench.begin(bench.plan())
        await machine.detach()
        await bench.engine.destroy_stray(machine.pid)
        assert bench.running() == {}

    play(scenario)


def test_vcpus_are_plugged_in(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        plan = bench.plan(cpus=1, cpus_max=3)
        machine = await bench.begin(plan)

        async def present() -> list[bool]:
            places = await machine.vcpus()
            assert [place.index for place in places] == [0, 1, 2]
            return [place.present for place in places]

        assert await present() == [True, False, False]
        await machine.plug_vcpu(1)
        assert await present() == [True, True, False]
        for taken in (0, 1):
            with pytest.raises(EngineError):
                await machine.plug_vcpu(taken)
        with pytest.raises(InnkeeperError):
            await machine.plug_vcpu(3)
        await machine.plug_vcpu(2)
        assert await present() == [True, True, True]
        assert await machine.run_state() is RunState.RUNNING
        await machine.kill()

    play(scenario)


def test_a_guest_that_knows_nothing_of_it_keeps_its_vcpus(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        machine = await bench.begin(bench.plan(cpus=2, cpus_max=2))
        if isinstance(machine, FakeMachine):
            machine.keeps_vcpus = True
        for _ in range(2):
            with contextlib.suppress(EngineError):  # QEMU knows of a guest that has not set up ACPI
                await machine.unplug_vcpu(1)
        with pytest.raises(EngineError):
            await machine.unplug_vcpu(0)
        await asyncio.sleep(0.2)
        assert all(place.present for place in await machine.vcpus())
        await machine.kill()

    play(scenario)


def test_a_stand_in_has_the_vcpus_that_were_plugged_in(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        plan = bench.plan(cpus=1, cpus_max=3)
        machine = await bench.begin(plan)
        await machine.plug_vcpu(1)
        like = replace(plan, cpus=2, cpus_built=1, incoming=True)
        stand_in = await bench.engine.stand_in(machine, like, RuntimeFiles(bench.root / "next"), None)
        await stand_in.receive(machine)
        machine.retire()
        await stand_in.succeed(machine)
        await stand_in.resume()
        assert [place.present for place in await stand_in.vcpus()] == [True, True, False]
        assert await stand_in.run_state() is RunState.RUNNING
        await stand_in.kill()

    play(scenario)


def test_many_at_once(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        plans = [bench.plan() for _ in range(6)]
        machines = await asyncio.gather(*map(bench.begin, plans))
        assert bench.running() == {plan.uid: one.pid for plan, one in zip(plans, machines, strict=True)}
        await asyncio.gather(*(machine.kill() for machine in machines))

    play(scenario)


# -- what only a real process can show ------------------------------------------------------------------


@pytest.mark.vm
def test_qemu_keeps_the_serial_output_while_nobody_listens(play_qemu: Play) -> None:
    async def scenario(bench: Bench) -> None:
        plan = bench.plan()
        machine = await bench.begin(plan)
        await machine.detach()
        await shortly(
            lambda: bootables.GREETING.encode() in plan.console_log.read_bytes(), "the guest said its line"
        )
        await bench.engine.destroy_stray(machine.pid)

    play_qemu(scenario)


@pytest.mark.vm
def test_a_killed_qemu_tells_its_signal(play_qemu: Play) -> None:
    async def scenario(bench: Bench) -> None:
        machine = await bench.begin(bench.plan())
        os.kill(machine.pid, 9)
        await ended(machine)
        assert (await machine.wait_exit()).status == -9

    play_qemu(scenario)


@pytest.mark.vm
def test_a_start_that_dies_tells_what_qemu_said(play_qemu: Play) -> None:
    async def scenario(bench: Bench) -> None:
        plan = bench.plan(cpu_model="no-such-cpu")
        with pytest.raises(StartFailed, match="unable to find CPU model 'no-such-cpu'") as caught:
            await bench.begin(plan)
        assert str(plan.qemu_log) in caught.value.hint
        assert not bench.files(plan).directory.exists()

    play_qemu(scenario)


@pytest.mark.vm
def test_qemus_that_die_while_the_monitor_connects(play_qemu: Play, caplog: pytest.LogCaptureFixture) -> None:
    """The end of the process and the end of the connection are seen at once, by two tasks."""

    async def scenario(bench: Bench) -> None:
        plans = [bench.break_launch(bench.plan()) for _ in range(12)]
        answers = await asyncio.gather(*map(bench.begin, plans), return_exceptions=True)
        assert {type(answer) for answer in answers} == {StartFailed}, answers

    play_qemu(scenario)
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.vm
def test_a_missing_program_is_told(play_qemu: Play) -> None:
    async def scenario(bench: Bench) -> None:
        plan = bench.plan(binary="/nowhere/qemu-system-x86_64")
        with pytest.raises(InnkeeperError):
            await bench.begin(plan)
        assert not bench.files(plan).directory.exists()

    play_qemu(scenario)


@pytest.mark.vm
def test_a_missing_disk_is_told(play_qemu: Play) -> None:
    async def scenario(bench: Bench) -> None:
        plan = bench.plan()
        plan.disks[0].chain[0].path.unlink()
        with pytest.raises(InnkeeperError, match="is gone"):
            await bench.begin(plan)
        assert not bench.files(plan).directory.exists()

    play_qemu(scenario)


@pytest.mark.vm
@pytest.mark.skipif(shutil.which("passt") is None, reason="passt is not installed")
def test_a_port_that_is_taken_is_told_before_anything_starts(play_qemu: Play) -> None:
    import socket

    from innkeeper.engine.base import NicPlan

    async def scenario(bench: Bench) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            nic = NicPlan("virtio", "52:54:00:00:00:01", "passt", (("tcp", "127.0.0.1", port, 22),))
            plan = bench.plan(nics=(nic,))
            with pytest.raises(Refused, match=str(port)):
                await bench.begin(plan)
        assert not bench.files(plan).directory.exists()
        assert not plan.qemu_log.exists()

    play_qemu(scenario)


@pytest.mark.vm
def test_descriptors_are_back_to_what_they_were(play_qemu: Play) -> None:
    async def scenario(bench: Bench) -> None:
        async def once(plan_changes: dict[str, str]) -> None:
            plan = replace(bench.plan(), **plan_changes)  # type: ignore[arg-type]
            try:
                machine = await bench.begin(plan)
            except StartFailed:
                return
            await machine.kill()
            await ended(machine)
            await machine.detach()

        await once({})
        before = len(os.listdir("/proc/self/fd"))
        for changes in ({}, {"machine": "no-such-machine"}, {}):
            await once(changes)
        await shortly(lambda: len(os.listdir("/proc/self/fd")) <= before, "no descriptor is left open")

    play_qemu(scenario)


@pytest.mark.vm
def test_a_screenshot_is_a_png(play_qemu: Play) -> None:
    async def scenario(bench: Bench) -> None:
        machine = await bench.begin(bench.plan(vga="std"))
        picture = await machine.screenshot()
        assert picture.startswith(b"\x89PNG\r\n\x1a\n") and picture.endswith(b"IEND\xaeB`\x82")
        await machine.kill()
        without = await bench.begin(bench.plan(vga="none"))
        with pytest.raises(Refused, match="no display"):
            await without.screenshot()
        await without.kill()

    play_qemu(scenario)


def test_sources_of_boot_sectors_fit(tmp_path: Path) -> None:
    for kind in bootables.KINDS:
        sector = bootables.boot_sector(kind)
        assert len(sector) == 512 and sector.endswith(b"\x55\xaa")
