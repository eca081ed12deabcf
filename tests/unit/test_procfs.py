"""What the kernel tells of a process; of this one, whose pages the test makes, and of made-up ones."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.inspected import PAGE, Ram
from innkeeper.drivers import procfs
from innkeeper.drivers.procfs import MemoryMapping

ME = os.getpid()
KiB = 1024

SMAPS = """\
00400000-00452000 r-xp 00000000 08:02 173521                             /usr/bin/with spaces
Size:                328 kB
KSM:                   4 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0040000000 rw-s 00001000 00:01 1233                       /memfd:innkeeper-ram (deleted)
Size:            1048576 kB
KernelPageSize:     2048 kB
ShmemPmdMapped:     4096 kB
VmFlags: rd wr sh mr mw me ms dc hg mg
7f0040000000-7f0040001000 ---p 00000000 00:00 0
"""


@pytest.fixture(params=["shared", "private", "anonymous"])
def ram(request: pytest.FixtureRequest) -> Iterator[Ram]:
    made = Ram(16, request.param)
    yield made
    made.close()


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "smaps").write_text(SMAPS)
    lines = [line for line in SMAPS.splitlines() if "-" in line.split()[0]]
    (tmp_path / "7" / "maps").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_mapping_around_an_address_with_its_numbers(proc: Path) -> None:
    found = procfs.mapping_at(7, 0x7F0000000000 + 5 * PAGE, proc)
    assert found and (found.start, found.end) == (0x7F0000000000, 0x7F0040000000)
    assert (found.offset, found.device, found.inode, found.private) == (0x1000, "00:01", 1233, False)
    assert found.numbers["KernelPageSize"] == 2048 * KiB and found.numbers["ShmemPmdMapped"] == 4096 * KiB
    assert "mg" in found.flags and found.path == "/memfd:innkeeper-ram (deleted)"
    assert "KSM" not in found.numbers, "that of the mapping before"
    last = procfs.mapping_at(7, 0x7F0040000000, proc)
    assert last and last.private and last.inode == 0 and last.numbers == {}
    assert procfs.mapping_at(7, 0x7F0040001000, proc) is None
    assert next(iter(procfs.mappings(7, proc))).path == "/usr/bin/with spaces"


def test_of_a_process_that_has_ended(proc: Path) -> None:
    for read in (procfs.mappings, lambda pid, where: procfs.page_entry(pid, 0, where)):
        with pytest.raises(OSError):
            read(8, proc)
    assert procfs.command_line(8, proc) == []
    assert procfs.command_line(ME)[0]


def test_entries_of_pages(ram: Ram) -> None:
    assert not procfs.page_entry(ME, ram.host + 3 * PAGE).present
    ram.put(3 * PAGE, b"x")
    entry = procfs.page_entry(ME, ram.host + 3 * PAGE + 17)
    assert entry.present and not entry.swapped
    mapping = procfs.mapping_at(ME, ram.host)
    assert mapping is not None
    shared = not mapping.private
    assert entry.file is shared
    assert (entry.frame is not None) is (os.geteuid() == 0)
    with procfs.opened(ME, "pagemap") as fd:
        data = b"".join(procfs.pagemap(fd, ram.host, 16))
        assert len(data) == 16 * 8
        assert [bool(data[page * 8 + 7] & 0x80) for page in range(16)] == [page == 3 for page in range(16)]
        assert procfs.huge_ranges(fd, ram.host, 16) in ([], None)


def test_what_a_memory_file_has(ram: Ram) -> None:
    if ram.fd < 0:
        return
    mapping = procfs.mapping_at(ME, ram.host)
    assert mapping is not None
    ram.in_file(2 * PAGE, b"x" * PAGE * 2)
    ram.in_file(9 * PAGE, b"y")
    fd = procfs.open_mapped(ME, mapping)
    assert fd is not None
    try:
        assert procfs.file_residency(fd, 0, 16) == bytes(int(page in (2, 3, 9)) for page in range(16))
        assert list(procfs.file_data(fd, 0, 16)) == [(2, 4), (9, 10)]
        assert list(procfs.file_data(fd, 3 * PAGE, 4)) == [(0, 1)]
        assert procfs.file_residency(fd, 9 * PAGE, 2) == b"\x01\x00"
        assert list(procfs.file_data(fd, 10 * PAGE, 6)) == []
        assert os.fstat(fd).st_blocks * 512 == 3 * PAGE, "looking brought nothing in"
    finally:
        os.close(fd)
    assert procfs.open_mapped(ME, MemoryMapping(0, 0, "rw-s", 0, "00:ff", 1, "", {})) is None


def test_nodes_of_pages(ram: Ram) -> None:
    ram.put(0, b"x")
    nodes = procfs.page_nodes(ME, [ram.host, ram.host + PAGE])
    if nodes is None:
        pytest.skip("this kernel has no NUMA")
    assert nodes[0] >= 0 and nodes[1] < 0, "the second was never touched"
    assert list(procfs.page_nodes(ME, []) or []) == []


def test_flags_of_frames(tmp_path: Path) -> None:
    words = [0, procfs.KPF_KSM, procfs.KPF_THP, 0]
    (tmp_path / "kpageflags").write_bytes(b"".join(word.to_bytes(8, "little") for word in words))
    assert procfs.frame_flags([1, 2], tmp_path) == [procfs.KPF_KSM, procfs.KPF_THP]
    assert procfs.frame_flags([1], tmp_path / "none") is None


def test_threads() -> None:
    own = procfs.thread(ME, threading.get_native_id())
    assert own.state == "R" and own.user_s > 0 and own.cpu >= 0 and own.waited_s >= 0
    with pytest.raises(OSError):
        procfs.thread(ME, 1)
