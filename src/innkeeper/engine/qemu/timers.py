"""Timers that QEMU forgets when the state of a riscv64 guest is moved into another process.

Up to 10.1 at least neither the timers of the interrupt controller (hw/intc/riscv_aclint.c) nor those of the
vCPUs (Sstc, target/riscv/time_helper.c) are armed again (qemu-devel, September 2025, "hw/intc: Save
time_delta in RISC-V mtimer VMState" and others): a vCPU that slept until its timer sleeps for good. So guests
are given no Sstc (spec/architecture.py): their timers are the controller's then, whose registers can be
written through QEMU's gdb server. Each is made to go off; what the guest finds due then, it does, and sets
the next.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from innkeeper.engine.qemu.qmp import Monitor
from innkeeper.errors import EngineError

DEADLINE_S: Final = 5.0
# hw/riscv/virt.c, VIRT_CLINT, one for each socket; hw/intc/riscv_aclint.c: eight bytes for each hart.
_MTIMECMP: Final = 0x200_4000
_BYTES_EACH: Final = 8
_CHARDEV: Final = "timers"


async def rearm(monitor: Monitor) -> None:
    """Of a guest that stands still, its state just loaded. Of another architecture there is
    nothing to do. Raises EngineError."""
    cpus = await monitor.execute("query-cpus-fast")
    if not cpus or cpus[0].get("target") != "riscv64":
        return
    ours, theirs = socket.socketpair()
    try:
        ours.setblocking(False)
        await monitor.send_descriptor(theirs.fileno())
        await monitor.execute("getfd", {"fdname": _CHARDEV})
        backend = {
            "type": "socket",
            "data": {"addr": {"type": "fd", "data": {"str": _CHARDEV}}, "server": False},
        }
        await monitor.execute("chardev-add", {"id": _CHARDEV, "backend": backend})
        await _hmp(monitor, f"gdbserver chardev:{_CHARDEV}")
        try:
            async with asyncio.timeout(DEADLINE_S):
                await _ask(ours, b"Qqemu.PhyMemMode:1")
                for hart in range(len(cpus)):
                    await _ask(
                        ours,
                        b"M%x,%x:%s" % (_MTIMECMP + hart * _BYTES_EACH, _BYTES_EACH, b"00" * _BYTES_EACH),
                    )
        finally:
            await _hmp(monitor, "gdbserver none")
    except (TimeoutError, OSError) as error:
        raise EngineError(f"The guest's timers cannot be set again: {error or 'no answer'}") from error
    finally:
        ours.close()
        theirs.close()


async def _hmp(monitor: Monitor, line: str) -> None:
    await monitor.execute("human-monitor-command", {"command-line": line})


async def _ask(connection: socket.socket, packet: bytes) -> None:
    """One packet of gdb's remote protocol (the GDB manual, "Packets"), that is answered with OK."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, b"$%s#%02x" % (packet, sum(packet) % 256))
    answer = b""
    while b"#" not in answer[-3:-2]:
        part = await loop.sock_recv(connection, 4096)
        if not part:
            raise EngineError("QEMU's gdb server went away")
        answer += part
    await loop.sock_sendall(connection, b"+")
    if b"$OK#" not in answer:
        raise EngineError(f"QEMU's gdb server refused {packet!r}: {answer!r}")
