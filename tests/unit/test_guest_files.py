"""Files into and out of a guest, and hostile archives on the way out."""

from __future__ import annotations

import asyncio
import io
import os
import stat
import struct
import tarfile
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from fakes.qga import FakeQga
from helpers import run
from innkeeper.errors import BadRequest, Failed, InnkeeperError, NoCapacity, NotFound
from innkeeper.guest.agent import GuestAgent
from innkeeper.guest.cloudinit import EMPTY_USER_DATA, seed_iso
from innkeeper.guest.files import read_file, read_tree, safe_extract, write_file, write_tree

Scenario = Callable[[FakeQga, GuestAgent], Coroutine[Any, Any, None]]
BIG = bytes(range(256)) * 5000 + b"end"


def play(tmp_path: Path, scenario: Scenario, *, programs: dict[str, str] | None = None) -> None:
    async def whole() -> None:
        async with FakeQga(tmp_path / "qga.sock", programs=programs) as fake:
            agent = GuestAgent(fake.socket_path)
            try:
                await scenario(fake, agent)
            finally:
                await agent.close()
            assert fake.open_handles == 0
            assert fake.known_children == 0

    run(whole())


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for one in data:
        yield one


async def content(agent: GuestAgent, path: Path | str) -> bytes:
    return b"".join([one async for one in read_file(agent, str(path))])


def test_files_there_and_back(tmp_path: Path) -> None:
    async def scenario(_: FakeQga, agent: GuestAgent) -> None:
        path = tmp_path / "a 'strange' $name\n☃"
        size = await write_file(agent, str(path), pieces(b"", BIG, b"more", BIG), mode=0o751)
        assert size == 2 * len(BIG) + 4
        assert path.read_bytes() == BIG + b"more" + BIG
        assert stat.S_IMODE(path.stat().st_mode) == 0o751
        assert await content(agent, path) == BIG + b"more" + BIG
        assert await write_file(agent, str(path), pieces()) == 0
        assert await content(agent, path) == b""
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []

    play(tmp_path, scenario)


def test_a_file_is_never_half_there_nor_open_to_others(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    async def broken() -> AsyncIterator[bytes]:
        yield BIG
        drafts = [one for one in tmp_path.iterdir() if one.name.startswith(".innkeeper-")]
        assert [stat.S_IMODE(one.stat().st_mode) for one in drafts] == [0o600]
        raise RuntimeError("the client went away")

    async def scenario(_: FakeQga, agent: GuestAgent) -> None:
        with pytest.raises(RuntimeError):
            await write_file(agent, str(path), broken())
        assert path.read_text() == "old"
        assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "qga.sock"]

    play(tmp_path, scenario)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")

    async def scenario(_: FakeQga, agent: GuestAgent) -> None:
        await write_file(agent, str(tmp_path / "link"), pieces(b"new"))
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real").read_text() == "new"

    play(tmp_path, scenario)


def test_errors_of_single_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")

    async def scenario(_: FakeQga, agent: GuestAgent) -> None:
        for path, kind, words in (
            (f"{tmp_path}/none", NotFound, "no /"),
            (str(tmp_path), BadRequest, "is a directory"),
            (f"{tmp_path}/fifo", BadRequest, "not a regular file"),
            ("/dev/zero", BadRequest, "not a regular file"),
            ("relative", BadRequest, "absolute"),
            ("", BadRequest, "absolute"),
            ("/a\0b", BadRequest, "NUL"),
        ):
            with pytest.raises(kind, match=words):
                await content(agent, path)
        for path, kind, words in (
            (f"{tmp_path}/none/file", NotFound, "no directory"),
            (str(tmp_path), BadRequest, "is a directory"),
            (f"{tmp_path}/", BadRequest, "is a directory"),
            (f"{tmp_path}/fifo", BadRequest, "not a regular file"),
            ("relative", BadRequest, "absolute"),
        ):
            with pytest.raises(kind, match=words):
                await write_file(agent, path, pieces(b"x"))

    play(tmp_path, scenario)


def test_a_full_disk_in_the_guest(tmp_path: Path) -> None:
    error = (
        b'{"error": {"class": "GenericError", "desc": "failed to write to file: No space left on device"}}\n'
    )

    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        fake.faults["guest-file-write"].append(error)
        with pytest.raises(Failed, match="no space is left in the guest"):
            await write_file(agent, str(tmp_path / "file"), pieces(b"x"))
        assert [one.name for one in tmp_path.iterdir()] == ["qga.sock"]

    play(tmp_path, scenario)


def test_single_files_without_a_shell(tmp_path: Path) -> None:
    async def scenario(_: FakeQga, agent: GuestAgent) -> None:
        await write_file(agent, str(tmp_path / "file"), pieces(BIG))
        assert await content(agent, tmp_path / "file") == BIG
        with pytest.raises(NotFound):
            await content(agent, tmp_path / "none")
        with pytest.raises(BadRequest, match="directory"):
            await content(agent, tmp_path)
        with pytest.raises(NotFound):
            await write_file(agent, str(tmp_path / "none/file"), pieces(b"x"))

    play(tmp_path, scenario, programs={})


def test_reading_can_be_given_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BIG)

    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        for stream in (read_file(agent, str(tmp_path / "file")), read_tree(agent, str(tmp_path / "file"))):
            await anext(stream)
            await stream.aclose()

    play(tmp_path, scenario)


def make_tree(root: Path) -> None:
    (root / "sub/deep").mkdir(parents=True)
    (root / "sub/deep/big").write_bytes(BIG)
    (root / "script").write_text("#!/bin/sh\n")
    (root / "script").chmod(0o750)
    (root / "link").symlink_to("sub/deep/big")
    (root / "up").symlink_to("nowhere")
    os.link(root / "script", root / "sub/same")


def test_trees_there_and_back(tmp_path: Path) -> None:
    source = tmp_path / "-source"
    make_tree(source)

    async def scenario(_: FakeQga, agent: GuestAgent) -> None:
        stream = b"".join([one async for one in read_tree(agent, f"{source}/")])
        done = safe_extract(io.BytesIO(stream), tmp_path / "out")
        assert done.files == 3 and not done.skipped
        out = tmp_path / "out/-source"
        assert (out / "sub/deep/big").read_bytes() == BIG
        assert stat.S_IMODE((out / "script").stat().st_mode) == 0o750
        assert os.readlink(out / "link") == "sub/deep/big"
        assert (out / "sub/same").samefile(out / "script")
        await write_tree(agent, str(tmp_path / "new/place"), pieces(stream[:1000], stream[1000:]))
        assert (tmp_path / "new/place/-source/sub/deep/big").read_bytes() == BIG

    play(tmp_path, scenario)


def test_errors_of_trees(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    async def broken() -> AsyncIterator[bytes]:
        yield b"\0" * 100
        raise RuntimeError("the client went away")

    async def scenario(_: FakeQga, agent: GuestAgent) -> None:
        with pytest.raises(NotFound):
            _ = [one async for one in read_tree(agent, str(tmp_path / "none"))]
        with pytest.raises(BadRequest):
            await write_tree(agent, str(tmp_path / "file"), pieces(b""))
        with pytest.raises(Failed, match="tar"):
            await write_tree(agent, str(tmp_path / "out"), pieces(b"no archive" * 1000))
        with pytest.raises(RuntimeError, match="went away"):
            await write_tree(agent, str(tmp_path / "out"), broken())

    play(tmp_path, scenario)


def test_a_write_that_is_cancelled_leaves_no_tar(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        await asyncio.sleep(60)
        yield b""

    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        working = asyncio.create_task(write_tree(agent, str(tmp_path / "out"), endless()))
        await asyncio.sleep(0.2)
        working.cancel()
        await asyncio.wait([working])
        assert working.cancelled()

    play(tmp_path, scenario)


# -- archives from a guest that means harm -------------------------------------------------------------


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"", mode: int = 0o644
) -> Any:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, len(data), mode
    return info, data


def archive(*members: Any) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return io.BytesIO(out.getvalue())


@pytest.mark.parametrize(
    "members",
    [
        [member("/etc/evil", data=b"x")],
        [member("../evil", data=b"x")],
        [member("a/../../evil", data=b"x")],
        [member("..", tarfile.DIRTYPE)],
        [member("here", tarfile.SYMTYPE, "."), member("here/evil", data=b"x")],
        [member("d", tarfile.DIRTYPE), member("l", tarfile.SYMTYPE, "d"), member("l", tarfile.DIRTYPE)],
        [member("hard", tarfile.LNKTYPE, "../outside")],
        [member("hard", tarfile.LNKTYPE, "/etc/passwd")],
        [member("hard", tarfile.LNKTYPE, "none")],
        [member("f", data=b"x"), member("f/under", data=b"x")],
        [member("x" * 300, data=b"x")],
    ],
)
def test_members_that_want_out_are_refused(tmp_path: Path, members: list[Any]) -> None:
    (tmp_path / "outside").write_text("untouched")
    with pytest.raises(Failed) as caught:
        safe_extract(archive(*members), tmp_path / "in")
    assert caught.value.hint or "cannot unpack" in str(caught.value)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["in", "outside"]
    assert (tmp_path / "outside").read_text() == "untouched"


def test_what_is_harmless_but_unwanted_is_skipped(tmp_path: Path) -> None:
    done = safe_extract(
        archive(
            member("d/abs", tarfile.SYMTYPE, "/etc/passwd"),
            member("d/up", tarfile.SYMTYPE, "../../outside"),
            member("d/hidden", tarfile.SYMTYPE, "x/../../.."),
            member("d/fine", tarfile.SYMTYPE, "../file"),
            member("d/device", tarfile.CHRTYPE),
            member("d/block", tarfile.BLKTYPE),
            member("d/fifo", tarfile.FIFOTYPE),
            member("file", data=b"content", mode=0o6755),
        ),
        tmp_path / "in",
    )
    assert [name for name, _ in done.skipped] == [
        "d/abs",
        "d/up",
        "d/hidden",
        "d/device",
        "d/block",
        "d/fifo",
    ]
    assert (done.files, done.bytes) == (1, 7)
    assert (tmp_path / "in/d/fine").read_bytes() == b"content"
    assert stat.S_IMODE((tmp_path / "in/file").stat().st_mode) == 0o755


def test_existing_links_are_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "outside").write_text("untouched")
    (tmp_path / "in/file").symlink_to("../outside")
    safe_extract(archive(member("file", data=b"new")), tmp_path / "in")
    assert (tmp_path / "outside").read_text() == "untouched"
    assert not (tmp_path / "in/file").is_symlink()


def test_an_unwritable_directory_can_be_filled(tmp_path: Path) -> None:
    safe_extract(archive(member("d", tarfile.DIRTYPE, mode=0o000), member("d/f", data=b"x")), tmp_path)
    assert (tmp_path / "d/f").read_text() == "x"


def header(name: bytes, size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name.decode())
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_an_extended_header_does_not_fill_the_memory(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(Failed, match="oversized"):
        safe_extract(io.BytesIO(header(b"h", 8 << 30, kind) + b"\0" * 4096), tmp_path)


def test_sparse_files_are_refused(tmp_path: Path) -> None:
    block = bytearray(header(b"sparse", 512, tarfile.GNUTYPE_SPARSE))
    struct.pack_into("12s12s", block, 386, b"00000000000\0", b"00000001000\0")
    struct.pack_into("12s", block, 483, b"77777777777\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises(Failed, match="sparse"):
        safe_extract(io.BytesIO(bytes(block) + b"\0" * 4096), tmp_path)


def test_limits_and_damage(tmp_path: Path) -> None:
    whole = archive(member("a", data=BIG), member("b", data=BIG)).getvalue()
    with pytest.raises(NoCapacity):
        safe_extract(io.BytesIO(whole), tmp_path, limit_bytes=len(BIG) + 1)
    after_first = 512 + (len(BIG) + 511) // 512 * 512
    cut = whole[:100], whole[: len(BIG)], whole[:after_first]
    for damaged in (*cut, b"", b"x" * 5000, whole[:512] + b"x" * 20_000_000):
        with pytest.raises(InnkeeperError):
            safe_extract(io.BytesIO(damaged), tmp_path)


# -- seeds ---------------------------------------------------------------------------------------------


def read_iso(image: bytes) -> dict[str, str]:
    from pycdlib import PyCdlib

    iso = PyCdlib()
    iso.open_fp(io.BytesIO(image))
    found = {}
    for child in iso.list_children(rr_path="/"):
        if child.is_file():
            out = io.BytesIO()
            name = child.rock_ridge.name().decode()
            iso.get_file_from_iso_fp(out, rr_path=f"/{name}")
            joliet = io.BytesIO()
            iso.get_file_from_iso_fp(joliet, joliet_path=f"/{name}")
            assert joliet.getvalue() == out.getvalue()
            found[name] = out.getvalue().decode()
    assert iso.pvd.volume_identifier.strip() == b"cidata"
    iso.close()
    return found


def test_a_seed_reads_back(tmp_path: Path) -> None:
    seed = seed_iso(hostname="vm", instance_id="i-1", user_data="#cloud-config\npackages: [ä]\n")
    assert read_iso(seed) == {
        "meta-data": '{"instance-id": "i-1", "local-hostname": "vm"}\n',
        "user-data": "#cloud-config\npackages: [ä]\n",
    }
    seed = seed_iso(hostname="vm", instance_id="i-1", user_data="", network_config="version: 2\n")
    assert read_iso(seed)["user-data"] == EMPTY_USER_DATA
    assert read_iso(seed)["network-config"] == "version: 2\n"


def test_a_seed_does_not_depend_on_time_or_place(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    first = seed_iso(hostname="vm", instance_id="i-1", user_data="x" * 5000)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        time.sleep(1.1)
        assert seed_iso(hostname="vm", instance_id="i-1", user_data="x" * 5000) == first
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("names", [("", "i"), ("vm", ""), ("a\nb", "i"), ("vm", "a\0b")])
def test_bad_names_of_a_seed(names: tuple[str, str]) -> None:
    with pytest.raises(BadRequest):
        seed_iso(hostname=names[0], instance_id=names[1], user_data="")
