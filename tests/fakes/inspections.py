"""Answers of the inspector, as the API gives them: one of each kind, recorded from a guest and shortened."""

from __future__ import annotations

from innkeeper.spec.inspection import (
    AddressReport,
    Composed,
    CpuInspection,
    CpuReport,
    CpuSummary,
    CpuThread,
    DiskInspection,
    DiskReport,
    EntryView,
    GuestSide,
    HostPlace,
    ImageLayer,
    IoCounters,
    MemoryMap,
    MemoryTotals,
    NetInspection,
    NicReport,
    PageRun,
    PageView,
    Picture,
    Slot,
    WalkStep,
    WalkView,
)

MiB = 1 << 20
SUMMARY = CpuSummary(
    cpu=0,
    mode="long",
    ring=0,
    halted=True,
    smm=False,
    paging="4-level",
    rip="0xffffffff81a17a0b",
    rsp="0xffffffff82a03e98",
    cr0="0x80050033",
    cr2="0x7ffd1fdce960",
    cr3="0xfa20000",
    cr4="0x750eb0",
    efer="0xd01",
)
HOST = HostPlace(
    address="0x7fd6eda16a0b",
    state="private",
    mapped=True,
    swapped=False,
    file=False,
    exclusive=True,
    soft_dirty=True,
    physical="0x1519efa0b",
    page_bytes=4096,
    huge="no",
    node=0,
)
SLOT = Slot(
    name="ram0",
    kind="ram",
    first="0x100000",
    last="0xfffffff",
    bytes=255 * MiB,
    offset=MiB,
    host_address="0x7fd6ec0ff000",
    guest_ram=True,
)
STEPS = [
    WalkStep(
        level="PDPT",
        index=510,
        entry_address="0x2a15ff0",
        entry="0x2a16063",
        flags=["P", "RW", "A"],
        points_to="0x2a16000",
        page_bytes=0,
        host=HOST,
    ),
    WalkStep(
        level="PD",
        index=13,
        entry_address="0x2a16068",
        entry="0x1a001e1",
        flags=["P", "A", "D", "G", "PS"],
        points_to="0x1a00000",
        page_bytes=2 * MiB,
        host=None,
    ),
]
PAGE = PageView(
    base="0x1a00000",
    bytes=2 * MiB,
    writable=False,
    user=False,
    executable=True,
    is_global=True,
    accessed=True,
    dirty=True,
)


def _entry(source: str, *why: str) -> EntryView:
    return EntryView(
        source=source,
        target="0x1519ef000",
        bytes=4096,
        present=True,
        writable=False,
        user=True,
        executable=True,
        why=list(why),
    )


ADDRESS = AddressReport(
    name="web",
    asked="rip",
    cpu=SUMMARY,
    virtual="0xffffffff81a17a0b",
    physical="0x1a17a0b",
    walk=WalkView(
        paging="4-level", root="0xfa20000", steps=STEPS, end="mapped", level="", detail="", page=PAGE
    ),
    slot=SLOT,
    device="",
    host=HOST,
    composed=Composed(
        shadow=_entry("0xffffffff81a17000", "the host's page is shared: a write copies it first"),
        nested=_entry("0x1a17000"),
        shadow_references=4,
        nested_references=19,
        used="softmmu",
        note="under TCG neither exists",
    ),
    content="c3 cc",
    took_ms=5.0,
)
UNMAPPED = ADDRESS.model_copy(
    update={
        "physical": None,
        "walk": WalkView(
            paging="4-level",
            root="0xfa20000",
            steps=[STEPS[0].model_copy(update={"flags": [], "entry": "0x0"})],
            end="not-present",
            level="PDPT",
            detail="the entry at 0x2a15ff0 is not present",
            page=None,
        ),
        "slot": None,
        "host": None,
        "composed": None,
        "content": "",
    }
)
MEMORY = MemoryMap(
    name="web",
    cpus=[SUMMARY],
    slots=[SLOT, SLOT.model_copy(update={"name": "vga.vram", "guest_ram": False})],
    totals=MemoryTotals(
        bytes=256 * MiB,
        present=100 * MiB,
        own=0,
        huge=0,
        shared=90 * MiB,
        private=10 * MiB,
        ksm=0,
        swapped=0,
        untouched=156 * MiB,
        ballooned=None,
    ),
    shared_with=["web-1"],
    cell_bytes=MiB,
    pictures=[Picture(first="0x0", cells="S" * 90 + "p" * 10 + "." * 156)],
    runs=[PageRun(first="0x0", bytes=90 * MiB, state="shared")],
    took_ms=12.0,
)
CPU = CpuInspection(
    name="web",
    accelerator="kvm",
    paused=True,
    cpus=[
        CpuReport(
            summary=SUMMARY,
            topology={"socket-id": 0, "core-id": 0},
            thread=CpuThread(
                id=4711,
                name="CPU 0/KVM",
                state="S",
                user_s=1.5,
                system_s=0.5,
                waited_s=0.25,
                ran_on=1,
                slices=99,
            ),
            flags={"cr0": ["PE", "PG"], "cr4": ["PAE"], "efer": ["LME", "LMA"]},
            registers={"rip": "0xffffffff81a17a0b"},
            executing=["0xffffffff81a17a0b: c3 retq"],
            exits={"exits": 1000, "halt_exits": 12},
        )
    ],
    note="",
    took_ms=3.0,
)
_NONE = IoCounters(requests=0, bytes=0, merged=0, failed=0, invalid=0, average_us=None)
DISK = DiskInspection(
    name="web",
    disks=[
        DiskReport(
            name="root",
            node="disk-root",
            bus="virtio",
            state="ok",
            virtual_bytes=1 << 30,
            allocated_bytes=3 * MiB,
            layers=[
                ImageLayer(
                    path="/srv/top.qcow2",
                    format="qcow2",
                    node="disk-root",
                    virtual_bytes=1 << 30,
                    allocated_bytes=MiB,
                    writable=True,
                    used_by=[],
                    bitmaps=[{"name": "backup"}],
                ),
                ImageLayer(
                    path="/srv/base.qcow2",
                    format="qcow2",
                    node="disk-root-1",
                    virtual_bytes=1 << 30,
                    allocated_bytes=2 * MiB,
                    writable=False,
                    used_by=["web-1", "web/s1"],
                    bitmaps=[],
                ),
            ],
            cache="writeback",
            aio="threads",
            discard="unmap",
            detect_zeroes="off",
            throttle={"total_ops": 100, "total_ops_burst": 200, "total_ops_burst_length": 10},
            throttle_shared=True,
            held_back_by=["total_ops"],
            in_flight=2,
            reads=IoCounters(requests=10, bytes=40960, merged=1, failed=0, invalid=0, average_us=55.5),
            writes=_NONE,
            flushes=_NONE,
            discards=_NONE,
        )
    ],
    took_ms=4.0,
)
NET = NetInspection(
    name="web",
    nics=[
        NicReport(
            name="net0",
            model="virtio",
            mac="52:54:00:00:00:01",
            backend="passt",
            backend_pid=4712,
            backend_alive=False,
            connected=True,
            waiting_bytes=2048,
            host_access=True,
            forwards=[{"protocol": "tcp", "host": "127.0.0.1", "host_port": 8080, "guest_port": 80}],
            promiscuous=True,
            multicast=[],
            guest=GuestSide(
                interface="eth0",
                state="up",
                addresses=["10.0.2.15/24"],
                counters={"rx_bytes": 684, "rx_packets": 2, "tx_errs": 3},
            ),
        )
    ],
    note="",
    took_ms=2.0,
)
