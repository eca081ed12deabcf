"""The inspector over a VM whose RAM is this process's own: what the kernel says of it is real."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from fakes.inspected import PAGE, FakeInspection, Kind, Ram, registers
from fakes.world import World
from helpers import run
from innkeeper.agent.inspect import access, address, inspector, memory
from innkeeper.agent.inspect.disk import blockdev_options, cache_mode
from innkeeper.agent.service import LiveService
from innkeeper.engine.inspection import AddressSpace, BlockDevice, BlockNode, Nic, Region
from innkeeper.engine.throttle import Throttle
from innkeeper.errors import BadRequest, EngineError, NotFound, Unsupported, WrongState
from innkeeper.guest import interfaces as guest_interfaces
from innkeeper.spec.inspection import HostPlace, MemoryMap

Scenario = Callable[[World, LiveService, FakeInspection], Awaitable[None]]
P, RW, US, A, D = 1, 2, 4, 1 << 5, 1 << 6
VIRTUAL = 0xFFFF_8000_0000_5123


@pytest.fixture
def rams() -> Iterator[Callable[[int, Kind], Ram]]:
    made: list[Ram] = []

    def make(pages: int, kind: Kind = "shared") -> Ram:
        made.append(Ram(pages, kind))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def play(tmp_path: Path) -> Callable[[FakeInspection, Scenario], None]:
    """A running VM `web` that is made of that."""

    def play_it(vm: FakeInspection, scenario: Scenario) -> None:
        async def inside() -> None:
            world = World(tmp_path)
            async with world.daemon():
                await world.create()
                machine = world.machine()
                machine.pid, machine.inspected = os.getpid(), vm
                await scenario(world, LiveService(world.ctx), vm)

        run(inside())

    return play_it


def tables(ram: Ram, frame: int = 0x9000, flags: int = P | RW | A | D) -> None:
    """4 levels at 0x1000 for VIRTUAL."""
    for level, (table, entry) in enumerate(
        ((0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000), (0x4000, frame))
    ):
        index = VIRTUAL >> (39 - 9 * level) & 511
        ram.word(table + index * 8, entry | (flags if level == 3 else P | RW | US | A))


# -- one address -----------------------------------------------------------------------------------


def test_an_address_all_the_way_down(
    play: Callable[[FakeInspection, Scenario], None], rams: Callable[..., Ram]
) -> None:
    ram = rams(64)
    tables(ram)
    ram.put(0x9123, b"sixteen bytes !!")

    async def scenario(world: World, live: LiveService, vm: FakeInspection) -> None:
        found = await live.inspect_address("web", hex(VIRTUAL))
        assert (found.virtual, found.physical) == (hex(VIRTUAL), "0x9123")
        assert bytes.fromhex(found.content) == b"sixteen bytes !!"
        assert found.walk and [one.level for one in found.walk.steps] == ["PML4", "PDPT", "PD", "PT"]
        assert found.slot and (found.slot.name, found.slot.first, found.slot.bytes) == (
            "ram0",
            "0x0",
            64 * PAGE,
        )
        assert found.host and found.host.address == hex(ram.host + 0x9123) and found.host.state == "own"
        for step in found.walk.steps:
            assert step.host and step.host.address == hex(ram.host + int(step.entry_address, 16))
        composed = found.composed
        assert composed and composed.used == "softmmu" and composed.shadow and composed.nested
        assert (composed.shadow_references, composed.nested_references) == (4, 24)
        if os.geteuid() == 0:
            frame = found.host.physical
            assert frame and int(frame, 16) % PAGE == 0x123
            assert composed.shadow.target == composed.nested.target == hex(int(frame, 16) - 0x123)
        assert vm.read_by_qemu == [], "memory is read where it lies"

    play(FakeInspection(ram), scenario)


def test_registers_and_other_vcpus(
    play: Callable[[FakeInspection, Scenario], None], rams: Callable[..., Ram]
) -> None:
    ram = rams(64)
    tables(ram)
    vm = FakeInspection(ram, [registers(0, CR3=0x8000), registers(1, RIP=VIRTUAL, RSP=VIRTUAL + 0x10)])

    async def scenario(world: World, live: LiveService, vm: FakeInspection) -> None:
        assert (await live.inspect_address("web", "rip", cpu=1)).physical == "0x9123"
        assert (await live.inspect_address("web", "rsp-0x10", cpu=1)).virtual == hex(VIRTUAL)
        other = await live.inspect_address("web", hex(VIRTUAL))
        assert other.physical is None and other.walk and other.walk.level == "PML4", "its tables are others"
        assert other.host is None and other.composed is None and other.slot is None
        assert (await live.inspect_address("web", "cr3", cpu=1)).physical == "0x1000"
        for bad in ("nonsense", "0x1ffffffffffffffff", "efer"):
            with pytest.raises(BadRequest):
                await live.inspect_address("web", bad)
        with pytest.raises(NotFound, match="vCPU 2"):
            await live.inspect_address("web", "rip", cpu=2)

    play(vm, scenario)


def test_devices_and_holes(
    play: Callable[[FakeInspection, Scenario], None], rams: Callable[..., Ram]
) -> None:
    ram = rams(64)
    apic = Region(0xFEC00000, 0xFEC01000, "i/o", "ioapic")
    tables(ram, frame=0xFEC00000)

    async def scenario(world: World, live: LiveService, vm: FakeInspection) -> None:
        found = await live.inspect_address("web", hex(VIRTUAL))
        assert (found.physical, found.device, found.slot, found.host) == ("0xfec00123", "ioapic", None, None)
        assert found.content == "" and found.composed is None
        hole = await live.inspect_address("web", "0x123456789", physical=True)
        assert (hole.virtual, hole.walk, hole.device, hole.slot) == (None, None, "", None)

    play(FakeInspection(ram, more=[apic]), scenario)


def test_what_was_never_touched_stays_so(
    play: Callable[[FakeInspection, Scenario], None], rams: Callable[..., Ram]
) -> None:
    ram = rams(64)

    async def scenario(world: World, live: LiveService, vm: FakeInspection) -> None:
        for _ in range(2):
            found = await live.inspect_address("web", "0x20000", physical=True)
            assert found.host and (found.host.state, found.host.mapped, found.content) == (
                "untouched",
                False,
                "",
            )
            assert found.composed and found.composed.nested and not found.composed.nested.present

    play(FakeInspection(ram), scenario)


def test_a_fork_copies_what_it_writes(rams: Callable[..., Ram]) -> None:
    """State, composed rights and their reason, of a page that is shared and one that was copied."""
    ram = rams(64, "private")
    ram.in_file(0, bytes(16 * PAGE))
    tables(ram)
    pages = access.HostPages(os.getpid())
    before = pages.at(ram.host + 0x9000)
    assert before and (before.state, before.mapped) == ("shared", False), "in the file, not mapped here yet"
    assert ram.map[0x9000] == 0  # now it is
    shared = pages.at(ram.host + 0x9000)
    assert shared and (shared.state, shared.mapped, shared.file) == ("shared", True, True)
    region = Region(0, ram.size, "ram", "ram0", 0, ram.host)
    assert not address.host_page(region, 0x9000, shared).writable
    ram.put(0x9000, b"written")
    copied = pages.at(ram.host + 0x9000)
    assert copied and (copied.state, copied.file) == ("private", False)
    assert address.host_page(region, 0x9000, copied).writable


def test_huge_pages_count_only_where_they_fit(rams: Callable[..., Ram]) -> None:
    """A host's huge page is one for the guest if both sides are aligned alike, and the slot has all of it."""
    size = 2 << 20

    def place(host: int) -> HostPlace:
        return HostPlace(
            address=hex(host), state="huge", mapped=True, swapped=False, file=True, exclusive=True,
            soft_dirty=False, physical="0x140012345", page_bytes=size, huge="transparent", node=0,
        )  # fmt: skip

    region = Region(0, 8 * size, "ram", "ram0", 0, 0x7F00_0000_0000)
    fits = address.host_page(region, 0x212345, place(0x7F00_0021_2345))
    assert (fits.base, fits.bytes, fits.frame) == (size, size, 0x140000000)
    apart = Region(0, 8 * size, "ram", "ram0", 0, 0x7F00_0000_1000)
    split = address.host_page(apart, 0x212345, place(0x7F00_0021_3345))
    assert (split.base, split.bytes, split.frame) == (0x212000, PAGE, 0x140012000)
    short = Region(0x201000, 8 * size, "ram", "ram0", 0, 0x7F00_0020_1000)
    assert address.host_page(short, 0x212345, place(0x7F00_0021_2345)).bytes == PAGE
    # Of a larger page, a part that fits.
    gigantic = place(0x7F00_0041_2345).model_copy(
        update={"page_bytes": 1 << 30, "huge": "hugetlb", "physical": "0x140412345"}
    )
    part = address.host_page(
        Region(0x100000, 1 << 30, "ram", "ram0", 0, 0x7F00_0010_0000), 0x412345, gigantic
    )
    assert (part.base, part.bytes, part.frame) == (2 * size, size, 0x140400000)
    whole = address.host_page(Region(0, 1 << 30, "ram", "ram0", 0, 0x7F00_0000_0000), 0x412345, gigantic)
    assert (whole.base, whole.bytes, whole.frame) == (0, 1 << 30, 0x140000000)


def test_where_the_process_cannot_be_read_qemu_is_asked(
    play: Callable[[FakeInspection, Scenario], None],
    rams: Callable[..., Ram],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ram = rams(64)
    tables(ram)

    def denied(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(access.GuestMemory, "read", denied)

    async def scenario(world: World, live: LiveService, vm: FakeInspection) -> None:
        found = await live.inspect_address("web", hex(VIRTUAL))
        assert found.physical == "0x9123" and len(vm.read_by_qemu) == 4 and found.content == ""

    play(FakeInspection(ram), scenario)


# -- the map ---------------------------------------------------------------------------------------


def mapped(live: LiveService, *, numa: bool = False) -> Awaitable[MemoryMap]:
    return live.inspect_memory("web", numa=numa)


@pytest.mark.parametrize(
    ("kind", "written"), [("shared", "own"), ("private", "private"), ("anonymous", "own")]
)
def test_a_map_of_all_pages(
    kind: Kind, written: str, play: Callable[[FakeInspection, Scenario], None], rams: Callable[..., Ram]
) -> None:
    ram = rams(1024, kind)
    if ram.fd >= 0:
        ram.in_file(100 * PAGE, b"x" * PAGE * 10)
    ram.put(105 * PAGE, b"y" * PAGE * 20)

    async def scenario(world: World, live: LiveService, vm: FakeInspection) -> None:
        found = await mapped(live, numa=True)
        runs = [(int(one.first, 16) // PAGE, one.bytes // PAGE, one.state) for one in found.runs]
        common = {"shared": "own", "private": "shared"}.get(kind, "untouched")
        if kind == "shared":
            expected = [(0, 100, "untouched"), (100, 25, "own"), (125, 899, "untouched")]
        elif kind == "private":
            expected = [(0, 100, "untouched"), (100, 5, common), (105, 20, written), (125, 899, "untouched")]
        else:
            expected = [(0, 105, "untouched"), (105, 20, written), (125, 899, "untouched")]
        assert runs == expected
        totals = found.totals.model_dump()
        assert totals["bytes"] == 1024 * PAGE == totals["untouched"] + totals["present"]
        assert totals["present"] == sum(pages for _, pages, state in expected if state != "untouched") * PAGE
        assert totals["ballooned"] == 24 * PAGE
        assert found.pictures[0].cells[1:] == "..." and found.pictures[0].cells[0].lower() == written[0]
        assert found.cpus[0].paging == "4-level" and found.shared_with == []
        if found.nodes is not None:
            in_tables = 25 if kind == "shared" else 20
            assert sum(found.nodes.values()) in (20 * PAGE, in_tables * PAGE)
            assert found.slots[0].nodes == found.nodes

    play(FakeInspection(ram, balloon=1000 * PAGE), scenario)


def test_forks_know_each_other(rams: Callable[..., Ram], tmp_path: Path) -> None:
    ram = rams(16, "private")
    space = AddressSpace([Region(0, ram.size, "ram", "ram0", 0, ram.host)], {"ram0": ram.size})
    answers = memory.Answers(space, None, [])
    # A child has the same mapping; this process's own entry stands for the VM itself.
    child = os.fork()
    if child == 0:
        os.read(os.pipe()[0], 1)  # until it is killed
        os._exit(0)
    try:
        others = {"twin": child, "gone": 2**22 + 1, "self": os.getpid(), "stranger": os.getppid()}
        found = memory.look("web", answers, os.getpid(), others, numa=False, begun=0.0)
        assert found.shared_with == ["twin"]
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_holes_of_a_block_belong_to_its_extent() -> None:
    regions = [
        Region(0, 0xA0000, "ram", "ram0", 0, 0x7F0000000000),
        Region(0xC0000, 0x100000, "rom", "ram0", 0xC0000, 0x7F00000C0000),
        Region(0x100000, 0x80000000, "ram", "ram0", 0x100000, 0x7F0000100000),
        Region(0x100000000, 0x180000000, "ram", "ram0", 0x80000000, 0x7F0080000000),
        Region(0x180000000, 0x190000000, "ram", "dimm1", 0, 0x7E0000000000),
    ]
    found = [(one.name, one.start, one.end) for one in memory.extents(regions)]
    assert found == [
        ("ram0", 0, 0x80000000),
        ("ram0", 0x100000000, 0x180000000),
        ("dimm1", 0x180000000, 0x190000000),
    ]


def test_merged_pages_are_found_by_their_frames(
    rams: Callable[..., Ram], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where KSM may work on a mapping, and root can see frames; the flags are made up."""
    if os.geteuid() != 0:
        pytest.skip("frames are shown to root only")
    from innkeeper.drivers import procfs

    ram = rams(16, "anonymous")
    ram.put(4 * PAGE, b"x" * PAGE * 3)
    real = procfs.mapping_at(os.getpid(), ram.host)
    assert real is not None
    flagged = procfs.MemoryMapping(
        real.start, real.end, real.permissions, real.offset, real.device, real.inode, real.path,
        {**real.numbers, "KSM": PAGE}, (*real.flags, "mg"),
    )  # fmt: skip
    monkeypatch.setattr(procfs, "mapping_at", lambda *_: flagged)
    flags = [0, procfs.KPF_KSM, 0]
    monkeypatch.setattr(procfs, "frame_flags", lambda frames, *_: flags[: len(frames)])
    space = AddressSpace([Region(0, ram.size, "ram", "ram0", 0, ram.host)], {"ram0": ram.size})
    found = memory.look("web", memory.Answers(space, None, []), os.getpid(), {}, numa=False, begun=0.0)
    assert (found.totals.ksm, found.totals.own) == (PAGE, 2 * PAGE)


def _look(host: int, size: int) -> MemoryMap:
    space = AddressSpace([Region(0, size, "ram", "ram0", 0, host)], {"ram0": size})
    return memory.look("web", memory.Answers(space, None, []), os.getpid(), {}, numa=False, begun=0.0)


def test_transparent_huge_pages() -> None:
    size = 2 << 20
    area = mmap.mmap(-1, 4 * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_HUGEPAGE)
    anchor = ctypes.c_char.from_buffer(area)
    skip = -ctypes.addressof(anchor) % size
    host = ctypes.addressof(anchor) + skip
    area[skip] = area[skip + 2 * size] = 1
    counted = access.HostPages(os.getpid()).counted(host)
    if not counted or counted.numbers.get("AnonHugePages") != 2 * size:
        pytest.skip("this host gives no transparent huge pages now")
    found = _look(host, 3 * size)
    page = access.HostPages(os.getpid()).at(host + 0x12345)
    assert page is not None
    if page.huge == "unknown":  # before Linux 6.7
        assert found.totals.own == 2 * size
    else:
        assert (found.totals.huge, found.totals.untouched) == (2 * size, size)
        assert [run.state for run in found.runs] == ["huge", "untouched", "huge"]
        assert (page.state, page.huge, page.page_bytes) == ("huge", "transparent", size)
    del anchor


def test_pages_of_a_pool() -> None:
    """hugetlbfs, where the host has some reserved: nothing of it is ever swapped."""
    size = 2 << 20
    fd = os.memfd_create("huge", os.MFD_HUGETLB)
    os.ftruncate(fd, 2 * size)
    try:
        area = mmap.mmap(fd, 2 * size, flags=mmap.MAP_SHARED)
    except OSError:
        pytest.skip("no huge pages are reserved here")
    finally:
        os.close(fd)
    area[0x1234] = 1
    anchor = ctypes.c_char.from_buffer(area)
    host = ctypes.addressof(anchor)
    totals = _look(host, 2 * size).totals
    assert (totals.huge, totals.untouched, totals.swapped) == (size, size, 0)
    pages = access.HostPages(os.getpid())
    touched, other = pages.at(host), pages.at(host + size)
    assert touched and (touched.huge, touched.page_bytes, touched.state) == ("hugetlb", size, "huge")
    assert other and (other.state, other.mapped) == ("untouched", False)
    del anchor


# -- CPUs, disks, network --------------------------------------------------------------------------


def test_cpus(play: Callable[[FakeInspection, Scenario], None], rams: Callable[..., Ram]) -> None:
    vm = FakeInspection(rams(4), [registers(0, HLT=1), registers(1, CPL=3, RIP=0x1234)])

    async def scenario(world: World, live: LiveService, vm: FakeInspection) -> None:
        found = await live.inspect_cpu("web")
        assert [(one.summary.halted, one.summary.ring) for one in found.cpus] == [(True, 0), (False, 3)]
        assert found.cpus[1].executing == ["0x1234: f4 hlt"] and found.cpus[0].exits is None
        assert found.cpus[0].thread and found.cpus[0].thread.id == os.getpid()
        assert "TCG" in found.note and not found.paused
        assert found.cpus[0].flags["efer"] == ["LME", "LMA", "NXE"]

    play(vm, scenario)


NODE = BlockNode("disk-data", "qcow2", 1 << 30, 4096, False, False, False)
STATS = {"rd_operations": 4, "rd_bytes": 4096, "rd_total_time_ns": 8000, "failed_wr_operations": 2}


def test_disks(play: Callable[[FakeInspection, Scenario], None]) -> None:
    device = BlockDevice("disk-data", "/d", "ok", True, STATS, 3, Throttle("disk-data", {"total_ops": 100}))

    async def scenario(world: World, live: LiveService, vm: FakeInspection) -> None:
        await world.create("disky", spec={"disks": [{"name": "data", "size": "1MiB"}]})
        world.machine("disky").inspected = vm
        (disk,) = (await live.inspect_disk("disky")).disks
        assert (disk.name, disk.in_flight, disk.throttle, disk.cache) == (
            "data",
            3,
            {"total_ops": 100},
            "writeback",
        )
        assert disk.reads.average_us == 2.0 and disk.writes.average_us is None and disk.writes.failed == 2
        assert [layer.used_by for layer in disk.layers] == [[]] and disk.layers[0].writable
        web = await live.inspect_disk("web")
        assert web.disks == []

    play(FakeInspection(nodes={"disk-data": NODE}, devices=[device]), scenario)


@pytest.mark.parametrize(
    ("direct", "writeback", "no_flush", "name"),
    [
        (False, True, False, "writeback"),
        (True, True, False, "none"),
        (False, False, False, "writethrough"),
        (True, False, False, "directsync"),
        (True, True, True, "unsafe"),
    ],
)
def test_names_of_cache_modes(direct: bool, writeback: bool, no_flush: bool, name: str) -> None:
    node = BlockNode("n", "raw", 0, 0, False, direct, no_flush)
    assert cache_mode(node, BlockDevice("n", "", "ok", writeback, {}, None)) == name


def test_options_of_the_process_itself() -> None:
    argv = ["qemu", "-blockdev", '{"node-name": "a", "aio": "io_uring"}', "-blockdev", "no json", "-blockdev"]
    assert blockdev_options(argv) == {"a": {"node-name": "a", "aio": "io_uring"}}


def test_network_cards(play: Callable[[FakeInspection, Scenario], None]) -> None:
    nic = Nic("net0", False, {"main-mac": "52:54:00:00:00:01", "promiscuous": True}, os.getpid(), 17)

    async def scenario(world: World, live: LiveService, vm: FakeInspection) -> None:
        await world.create("netty", spec={"networks": [{}]})
        world.machine("netty").inspected = vm
        found = await live.inspect_net("netty")
        (one,) = found.nics
        assert (one.mac, one.connected, one.waiting_bytes) == ("52:54:00:00:00:01", False, 17)
        assert one.backend_alive is False, "this process is no passt"
        assert one.promiscuous and one.guest is None and "no guest agent" in found.note

    play(FakeInspection(cards=[nic]), scenario)


class FakeAgent:
    def __init__(self, answer: object) -> None:
        self.answer = answer

    async def execute(self, command: str, **_: object) -> object:
        return self.answer


@pytest.mark.parametrize(
    "answer",
    [None, "eth0", [1], [{"name": "x", "ip-addresses": [{}]}], [{"statistics": 5, "name": "a"}], [{}]],
)
def test_guests_that_talk_nonsense(answer: object) -> None:
    from innkeeper.errors import Failed

    with pytest.raises(Failed, match="makes no sense"):
        run(guest_interfaces.interfaces(FakeAgent(answer)))  # type: ignore[arg-type]


def test_a_guests_counters() -> None:
    answer = [
        {
            "name": "eth0\x1b[2J",
            "hardware-address": "52:54:00:00:00:01",
            "ip-addresses": [{"ip-address": "10.0.2.15", "prefix": 24}],
            "statistics": {"rx-bytes": 5, "tx-errs": 1, "rx-packets": "many"},
        }
    ]
    (one,) = run(guest_interfaces.interfaces(FakeAgent(answer)))  # type: ignore[arg-type]
    assert one.counters == {"rx_bytes": 5, "tx_errs": 1} and one.addresses == ("10.0.2.15/24",)
    assert "\x1b" not in one.name


# -- what can go wrong -----------------------------------------------------------------------------


def test_a_template_is_not_shown_as_the_machine_it_has_not_loaded(
    play: Callable[[FakeInspection, Scenario], None], rams: Callable[..., Ram]
) -> None:
    async def scenario(world: World, live: LiveService, vm: FakeInspection) -> None:
        ctx = live._ctx
        await ctx.publish(ctx.records["web"], template="token")
        for look in (live.inspect_memory("web"), live.inspect_cpu("web"), live.inspect_address("web", "rip")):
            with pytest.raises(WrongState, match="web is a template: its memory and CPUs lie in files"):
                await look

    play(FakeInspection(), scenario)


def test_a_vm_that_does_not_run_hangs_or_is_no_x86(
    play: Callable[[FakeInspection, Scenario], None], rams: Callable[..., Ram]
) -> None:
    async def scenario(world: World, live: LiveService, vm: FakeInspection) -> None:
        await world.create("off", on=False)
        with pytest.raises(WrongState, match="not running"):
            await live.inspect_memory("off")
        with pytest.raises(NotFound):
            await live.inspect_cpu("nobody")
        vm.cpus = []
        with pytest.raises(Unsupported, match="no x86"):
            await live.inspect_address("web", "0")
        assert (await live.inspect_memory("web")).cpus == [], "its memory can be mapped all the same"
        vm.error = EngineError("QEMU did not answer", details={"timeout": True})
        for inspect in (live.inspect_memory, live.inspect_cpu, live.inspect_disk, live.inspect_net):
            with pytest.raises(EngineError, match="cannot be looked into") as failed:
                await inspect("web")
            assert "inn kill web" in failed.value.hint

    play(FakeInspection(rams(4)), scenario)


def test_a_process_that_may_not_be_looked_into(
    play: Callable[[FakeInspection, Scenario], None],
    rams: Callable[..., Ram],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(world: World, live: LiveService, vm: FakeInspection) -> None:
        def denied(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(access.procfs, "mapping_at", denied)
        with pytest.raises(Unsupported, match="does not let the daemon"):
            await live.inspect_memory("web")
        world.machine().pid = 2**22 + 1
        monkeypatch.undo()
        with pytest.raises(WrongState, match="ended"):
            await live.inspect_memory("web")

    play(FakeInspection(rams(4)), scenario)


def test_while_it_is_handed_over_nobody_looks(
    play: Callable[[FakeInspection, Scenario], None],
    rams: Callable[..., Ram],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inspector, "HAND_OVER_S", 0.2)

    async def scenario(world: World, live: LiveService, vm: FakeInspection) -> None:
        (running,) = world.ctx.running.values()
        running.at_rest.clear()
        asking = asyncio.create_task(live.inspect_cpu("web"))
        await asyncio.sleep(0.01)
        assert not asking.done()
        running.at_rest.set()
        assert (await asking).name == "web"
        running.at_rest.clear()
        with pytest.raises(WrongState, match="handed over"):
            await live.inspect_cpu("web")
        running.at_rest.set()

    play(FakeInspection(rams(4)), scenario)


def test_how_memory_is_translated_here(tmp_path: Path) -> None:
    def used(module: str, parameter: str, value: str) -> str:
        place = tmp_path / module / "sys/module" / module / "parameters"
        place.mkdir(parents=True, exist_ok=True)
        (place / parameter).write_text(value)
        return address.paging_used("kvm", tmp_path / module)[0]

    assert address.paging_used("tcg", tmp_path)[0] == "softmmu"
    assert address.paging_used("kvm", tmp_path)[0] == "unknown"
    assert used("kvm_intel", "ept", "Y\n") == "ept" and used("kvm_amd", "npt", "1\n") == "npt"
    assert used("kvm_amd", "npt", "0\n") == "shadow" == used("kvm_intel", "ept", "N\n")
