"""Copy files and directories into and out of a guest, through its agent.

Single files go through guest-file-read and -write, which need nothing else in the guest; directories are
tar streams through `exec`. Errors: NotFound, BadRequest (a directory where a file should be, ...),
Failed with the guest's own words, and what every agent command raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Final

from innkeeper.errors import BadRequest, Failed, InnkeeperError, NotFound, Unsupported
from innkeeper.guest.agent import ExecStatus, GuestAgent
from innkeeper.guest.channel import desc, printable
from innkeeper.guest.exec import STDERR, STDOUT, ExecRequest, ExecSession, open_exec
from innkeeper.guest.script import run_script
from innkeeper.guest.untar import Extracted, safe_extract

__all__ = ["Extracted", "read_file", "read_tree", "safe_extract", "write_file", "write_tree"]

# One answer in flight at a time: large enough to hide the round trip, small enough to share the agent.
CHUNK_BYTES: Final = 512 * 1024
_STDERR_KEPT_BYTES: Final = 4000

# Exit statuses of our scripts.
_MISSING, _DIRECTORY, _SPECIAL, _NO_PARENT = 40, 41, 42, 43

# guest-file-open would block the whole agent on a FIFO, and read a device for ever.
_CHECK: Final = f"""
[ -e "$1" ] || exit {_MISSING}
[ ! -d "$1" ] || exit {_DIRECTORY}
[ -f "$1" ] || exit {_SPECIAL}
"""
# $1 destination, $2 its directory, $3 temporary name. Made here since guest-file-open would make it
# readable for all.
_PREPARE: Final = f"""
[ ! -d "$1" ] || exit {_DIRECTORY}
[ ! -e "$1" ] || [ -f "$1" ] || exit {_SPECIAL}
[ -d "$2" ] || exit {_NO_PARENT}
umask 077
set -C
: >"$3"
"""
# $1 destination, $2 temporary name, $3 mode. A link stays: what it points to is replaced.
_COMMIT: Final = """
t=$1
[ ! -L "$t" ] || t=$(readlink -f "$t")
chmod "$3" "$2" && mv -f "$2" "$t"
"""
_READ_TREE: Final = f"""
[ -e "$1" ] || exit {_MISSING}
cd "$2" && exec tar -cf - "$3"
"""
_WRITE_TREE: Final = f"""
[ ! -e "$1" ] || [ -d "$1" ] || exit {_SPECIAL}
mkdir -p "$1" && cd "$1" && exec tar -xof -
"""
# GNU tar's complaints about files that live on while it reads them (status 1): the copy is still good.
_TAR_LIVE: Final = re.compile(r"file changed as we read it|[Ff]ile removed before we read it|socket ignored")


async def read_file(agent: GuestAgent, path: str) -> AsyncGenerator[bytes, None]:
    """The content of a regular file of the guest. Close the generator to stop early."""
    _check_path(path)
    checked = await run_script(agent, _CHECK, path)
    if checked is not None:
        _raise_for(checked, path)
    try:
        handle = await agent.file_open(path, "r")
    except Failed as error:
        raise _translated(error, path) from error
    try:
        while True:
            try:
                chunk = await agent.file_read(handle, CHUNK_BYTES)
            except Failed as error:
                raise _translated(error, path) from error
            if chunk.data:
                yield chunk.data
            if chunk.eof or not chunk.data:
                return
    finally:
        with contextlib.suppress(InnkeeperError):  # the agent closes what a dead client left
            await agent.file_close(handle)


async def write_file(agent: GuestAgent, path: str, chunks: AsyncIterable[bytes], mode: int = 0o644) -> int:
    """Make or replace a file of the guest, return its size in bytes. In a guest with a shell the file
    appears under its name only when it is complete, with `mode`; elsewhere `mode` has no effect."""
    _check_path(path)
    if path.endswith("/"):
        raise _is_directory(path)
    temporary = posixpath.join(posixpath.dirname(path), f".innkeeper-{secrets.token_hex(8)}")
    prepared = await run_script(agent, _PREPARE, path, posixpath.dirname(path), temporary)
    if prepared is None:
        return await _write_chunks(agent, path, chunks)
    _raise_for(prepared, path)
    try:
        size = await _write_chunks(agent, temporary, chunks)
        moved = await run_script(agent, _COMMIT, path, temporary, f"{mode & 0o7777:o}")
        if moved is not None:
            _raise_for(moved, path)
        return size
    except BaseException:
        with contextlib.suppress(InnkeeperError):  # the first error is the one to report
            await run_script(agent, 'rm -f "$1"', temporary)
        raise


async def read_tree(agent: GuestAgent, path: str) -> AsyncGenerator[bytes, None]:
    """A directory (or file) of the guest as a tar stream; its names start with the last part of `path`.
    Hostile as the guest may be: unpack it with `safe_extract`. Close the generator to stop early."""
    _check_path(path)
    whole = path.rstrip("/") or "/"
    parent, name = posixpath.split(whole)
    name = f"./{name}" if name.startswith("-") else name or "."
    complaint = bytearray()
    session = await open_exec(agent, ExecRequest(["sh", "-c", _READ_TREE, "sh", whole, parent, name]))
    async with session:
        async for stream, data in session:
            if stream == STDOUT:
                yield data
            elif len(complaint) < _STDERR_KEPT_BYTES:
                complaint += data
        status = await session.wait()
    lines = complaint.decode(errors="replace").splitlines()
    if status == 1 and lines and all(_TAR_LIVE.search(line) for line in lines):
        return
    _raise_for(ExecStatus(True, status, None, b"", bytes(complaint), False), path, "tar")


async def write_tree(agent: GuestAgent, path: str, stream: AsyncIterable[bytes]) -> None:
    """Unpack a tar stream below the guest's directory `path`, made if missing; all belongs to root."""
    _check_path(path)
    request = ExecRequest(["sh", "-c", _WRITE_TREE, "sh", path], stdin=True)
    async with await open_exec(agent, request) as session:
        feeding = asyncio.create_task(_feed(session, stream))
        try:
            complaint = bytearray()
            async for source, data in session:
                if source == STDERR and len(complaint) < _STDERR_KEPT_BYTES:
                    complaint += data
            try:
                status = await session.wait()
            except Failed:
                await feeding  # when it cancelled the session, its own error is the one to report
                raise
            _raise_for(ExecStatus(True, status, None, b"", bytes(complaint), False), path, "tar")
            await feeding
        finally:
            feeding.cancel()
            await asyncio.wait([feeding])


async def _feed(session: ExecSession, stream: AsyncIterable[bytes]) -> None:
    try:
        async for data in stream:
            await session.write(data)
        await session.close_stdin()
    except BaseException:
        # A cut stream must not look complete: tar would end as if all were well.
        await session.cancel()
        raise


async def _write_chunks(agent: GuestAgent, path: str, chunks: AsyncIterable[bytes]) -> int:
    try:
        handle = await agent.file_open(path, "w")
    except Failed as error:
        raise _translated(error, path) from error
    size, pending, closed = 0, bytearray(), False
    try:
        async for chunk in chunks:
            pending += chunk
            size += len(chunk)
            while len(pending) >= CHUNK_BYTES:
                await agent.file_write(handle, bytes(memoryview(pending)[:CHUNK_BYTES]))
                del pending[:CHUNK_BYTES]
        if pending:
            await agent.file_write(handle, bytes(pending))
        closed = True
        await agent.file_close(handle)  # writes what stdio still holds: its error counts
    except Failed as error:
        raise _translated(error, path) from error
    finally:
        if not closed:
            with contextlib.suppress(InnkeeperError):
                await agent.file_close(handle)
    return size


def _raise_for(ended: ExecStatus, path: str, program: str = "shell") -> None:
    status, shown = ended.status, printable(path)
    if status == 0:
        return
    if status == _MISSING:
        raise NotFound(f"the guest has no {shown}", hint="check the path")
    if status == _DIRECTORY:
        raise _is_directory(path)
    if status == _SPECIAL:
        raise BadRequest(f"{shown} in the guest is not a regular file", hint="name a file or a directory")
    if status == _NO_PARENT:
        raise NotFound(f"the guest has no directory for {shown}", hint="make it first")
    words = ended.stderr.decode(errors="replace").strip().splitlines()
    if status == 127 and program == "tar":
        raise Unsupported("the guest has no tar", hint="install it there, or copy files one by one")
    reason = printable(words[-1]) if words else f"exit status {status}"
    raise Failed(f"the guest's {program} failed on {shown}: {reason}", details={"desc": reason})


def _translated(error: Failed, path: str) -> InnkeeperError:
    words = desc(error)
    if "No such file or directory" in words:
        return NotFound(f"the guest has no {printable(path)}", hint="check the path")
    if "Is a directory" in words:
        return _is_directory(path)
    if "No space left" in words:
        return Failed(f"no space is left in the guest for {printable(path)}", hint="free some space there")
    return error


def _is_directory(path: str) -> BadRequest:
    return BadRequest(
        f"{printable(path)} in the guest is a directory", hint="name a file, or copy recursively"
    )


def _check_path(path: str) -> None:
    if "\0" in path:
        raise BadRequest("a path cannot contain NUL bytes")
    if not path.startswith("/") and not re.match(r"[A-Za-z]:[\\/]", path):
        raise BadRequest(
            f"{printable(path)!r} is not an absolute path in the guest", hint="start the path with /"
        )
