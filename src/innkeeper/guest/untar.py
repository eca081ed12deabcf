"""Unpack a tar stream from a guest on the host, believing nothing it says.

Python's own `data` filter came with 3.11.4 (PEP 706), Debian 12 has 3.11.2: so each member is checked
here, and written through directory descriptors without following a symbolic link at any step. Even an
archive that first makes a link and then writes "through" it, or somebody who swaps a directory for a
link meanwhile, stays inside.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, Self

from innkeeper.errors import Failed, NoCapacity

# tarfile reads extended headers into memory whole; an honest one holds a path and a few attributes.
_HEADER_LIMIT_BYTES: Final = 1024 * 1024
_COPY_BYTES: Final = 1024 * 1024
_DIR_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class Extracted:
    """What was unpacked, and what was left out: `(name, why)` of devices and of links to the outside."""

    files: int = 0
    bytes: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


class _Member(tarfile.TarInfo):
    """Headers are checked where tarfile would trust them (`_proc_member`, its dispatch by type) or take
    a damaged one after the first for the end of the archive (`fromtarfile`)."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # a block of zeros: the honest end
        except tarfile.HeaderError as error:
            raise Failed(f"the archive from the guest is cut or damaged: {error}", hint=_HINT) from error

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        names = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if self.type in extended + names and self.size > _HEADER_LIMIT_BYTES:
            raise Failed("the archive from the guest has an oversized header", hint=_HINT)
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return member


_HINT: Final = "the guest's tar is broken, or the guest is hostile; what was unpacked so far is harmless"


def safe_extract(stream: IO[bytes], destination: Path | str, *, limit_bytes: int | None = None) -> Extracted:
    """Unpack `stream` below `destination` (made if missing). Files and directories get the plain
    permission bits only, and belong to us. Existing files are replaced, existing directories used.

    Raises Failed for a damaged archive, or a member that wants to leave `destination`; NoCapacity after
    `limit_bytes` of content, or when the disk is full. Blocking: run it in a thread.
    """
    root = Path(destination)
    root.mkdir(parents=True, exist_ok=True)
    done = Extracted()
    root_fd = os.open(root, _DIR_FLAGS & ~os.O_NOFOLLOW)
    try:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member, errorlevel=2) as archive:
            for member in archive:
                _extract(archive, member, root_fd, done, limit_bytes)
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header: memory without bound
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise Failed(f"the archive from the guest is damaged: {error}", hint=_HINT) from error
    except OSError as error:
        kind = NoCapacity if error.errno in (28, 122) else Failed  # ENOSPC, EDQUOT
        raise kind(f"cannot unpack into {root}: {error.strerror}") from error
    finally:
        os.close(root_fd)
    return done


def _extract(
    archive: tarfile.TarFile, member: tarfile.TarInfo, root_fd: int, done: Extracted, limit: int | None
) -> None:
    parts = _parts(member.name)
    if member.issparse():
        raise Failed("the archive from the guest has a sparse file", hint=_HINT)  # zeros without end
    if not parts:
        return  # "." itself
    with _directory(root_fd, parts[:-1]) as parent_fd:
        name = parts[-1]
        if member.isdir():
            _make_directory(name, parent_fd)
            with _directory(parent_fd, [name]) as fd:
                # We must be able to fill it; whatever the archive says, it stays ours.
                os.fchmod(fd, (member.mode & 0o777) | 0o700)
        elif member.isfile():
            _write(archive, member, name, parent_fd, done, limit)
        elif member.issym():
            if _points_outside(member.linkname, len(parts) - 1):
                done.skipped.append((member.name, f"link to the outside: {member.linkname}"))
                return
            _replace(name, parent_fd)
            os.symlink(member.linkname, name, dir_fd=parent_fd)
        elif member.islnk():
            _link(member, name, root_fd, parent_fd, done)
        else:
            done.skipped.append((member.name, "neither a file, a directory nor a link"))


def _write(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    name: str,
    parent_fd: int,
    done: Extracted,
    limit: int | None,
) -> None:
    content = archive.extractfile(member)
    assert content is not None
    if limit is not None and done.bytes + member.size > limit:
        raise NoCapacity(f"the guest's files are larger than {limit} bytes", hint="copy fewer files")
    _replace(name, parent_fd)
    with os.fdopen(os.open(name, _FILE_FLAGS, 0o600, dir_fd=parent_fd), "wb") as file:
        while chunk := content.read(_COPY_BYTES):
            file.write(chunk)
            done.bytes += len(chunk)
        file.flush()
        os.fchmod(file.fileno(), member.mode & 0o777)  # no set-user-id from a guest
    done.files += 1


def _link(member: tarfile.TarInfo, name: str, root_fd: int, parent_fd: int, done: Extracted) -> None:
    target = _parts(member.linkname)
    if not target:
        raise Failed("the archive from the guest has a link to nothing", hint=_HINT)
    with _directory(root_fd, target[:-1]) as target_fd:
        if os.path.samestat(os.fstat(target_fd), os.fstat(parent_fd)) and target[-1] == name:
            return
        _replace(name, parent_fd)
        os.link(target[-1], name, src_dir_fd=target_fd, dst_dir_fd=parent_fd, follow_symlinks=False)
    done.files += 1


def _parts(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise Failed(f"the archive from the guest wants to leave the directory: {name!r}", hint=_HINT)
    return parts


def _points_outside(target: str, depth: int) -> bool:
    """Whether a link `depth` directories below the root may lead out. Only leading `..` are accepted,
    since one after a name could follow another link first and climb from there."""
    if target.startswith("/") or not target:
        return True
    parts = [part for part in target.split("/") if part not in ("", ".")]
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    return ups > depth or ".." in parts[ups:]


@contextlib.contextmanager
def _directory(root_fd: int, parts: list[str]) -> Iterator[int]:
    """A descriptor of a directory below `root_fd`, made if missing, reached without any link."""
    fd = os.dup(root_fd)
    try:
        for part in parts:
            _make_directory(part, fd)
            try:
                inner = os.open(part, _DIR_FLAGS, dir_fd=fd)
            except OSError as error:
                raise Failed(
                    f"the archive from the guest goes through {part!r}: {error.strerror}", hint=_HINT
                ) from error
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


def _make_directory(name: str, parent_fd: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=parent_fd)


def _replace(name: str, parent_fd: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=parent_fd)
