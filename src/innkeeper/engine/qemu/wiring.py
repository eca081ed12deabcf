"""Descriptors instead of paths: every file and socket of a VM is opened here, by the daemon, and
QEMU inherits them. It needs no file permission, and a broken QEMU reaches no other file.

/dev/fdset/N is QEMU's own name for a descriptor given with -add-fd (qemu-options.hx, "-add-fd").
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

from innkeeper.engine.memory import Ram, RamPlan
from innkeeper.engine.qemu.memory_argv import numa_members
from innkeeper.errors import Failed, NotFound


class Descriptors:
    """Opens what an argument list needs; a context that closes our copies once QEMU has its own."""

    def __init__(self, ram: Ram) -> None:
        """`ram` is the guest's; it stays the caller's."""
        self._ram = ram
        self._owned: list[int] = []
        self._sets: list[tuple[int, int, str]] = []  # (set, fd, what)
        self._networks: dict[int, int] = {}
        self.passed: list[int] = []

    def __enter__(self) -> Descriptors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in self._owned:
            os.close(fd)
        self._owned.clear()

    def options(self) -> list[str]:
        """The -add-fd options; they must come before what uses them."""
        return [
            word
            for number, fd, what in self._sets
            for word in ("-add-fd", f"fd={fd},set={number},opaque={what}")
        ]

    def image(self, path: Path, *, writable: bool) -> str:
        return self._fdset(path, os.O_RDWR if writable else os.O_RDONLY, "image")

    def log(self, path: Path) -> str:
        return self._fdset(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, "log")

    def ram(self, piece: RamPlan, *, private: bool) -> dict[str, Any]:
        """The file itself is bound to its NUMA nodes (ram.create); what a private view copies is QEMU's."""
        fd = self._ram.parts[piece.id]
        self.passed.append(fd)
        return {
            "qom_type": "memory-backend-file",
            "mem_path": f"/proc/self/fd/{fd}",
            "share": not private,
            **(numa_members(piece) if private else {}),
        }

    def readable(self, path: Path) -> str:
        """Kernel and initrd are opened with fopen, which knows no fdset: hand over a name under
        /proc/self/fd. Opening that again checks the file's own mode (proc(5)), so a file that not
        everybody may read is copied into memory first."""
        fd = self._open(path, os.O_RDONLY)
        if not os.fstat(fd).st_mode & 0o004:
            copy = os.memfd_create(path.name)
            self._owned.append(copy)
            os.fchmod(copy, 0o444)
            offset, size = 0, os.fstat(fd).st_size
            while offset < size:
                offset += os.sendfile(copy, fd, offset, size - offset)
            fd = copy
        self.passed.append(fd)
        return f"/proc/self/fd/{fd}"

    def listener(self, path: Path) -> str:
        """A listening socket made by us: a client may connect before QEMU even runs, without polling."""
        path.unlink(missing_ok=True)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(str(path))
        path.chmod(0o600)
        server.listen(1)
        fd = server.detach()
        self._owned.append(fd)
        self.passed.append(fd)
        return f"fd={fd}"

    def socket(self, path: Path) -> str:
        """In a directory handed over: as its own user, QEMU could not get through those above it."""
        fd = self._open(path.parent, os.O_PATH | os.O_DIRECTORY)
        self.passed.append(fd)
        return f"/proc/self/fd/{fd}/{path.name}"

    def network(self, index: int, path: Path) -> dict[str, Any]:
        return {"type": "fd", "str": str(self._networks[index])}

    def network_pair(self, index: int) -> tuple[int, int]:
        """A connected pair for NIC `index`: QEMU inherits the first, the second is for passt."""
        first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        qemu_end, passt_end = first.detach(), second.detach()
        self._owned.append(passt_end)
        self.network_end(index, qemu_end)
        return qemu_end, passt_end

    def network_end(self, index: int, fd: int) -> None:
        """QEMU's end of the connection of NIC `index`; ours to close from now on."""
        self._owned.append(fd)
        self.passed.append(fd)
        self._networks[index] = fd

    def _fdset(self, path: Path, flags: int, what: str) -> str:
        fd = self._open(path, flags)
        number = len(self._sets) + 1
        self._sets.append((number, fd, what))
        self.passed.append(fd)
        return f"/dev/fdset/{number}"

    def _open(self, path: Path, flags: int) -> int:
        try:
            fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY, 0o600)
        except FileNotFoundError:
            raise NotFound(
                f"The file {path} is gone", hint="put it back, or remove it from the spec"
            ) from None
        except OSError as error:
            raise Failed(f"Cannot open {path}: {error.strerror}", hint="check its permissions") from error
        self._owned.append(fd)
        return fd
