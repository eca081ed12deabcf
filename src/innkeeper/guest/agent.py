"""A typed client of the QEMU guest agent (docs/interop/qemu-ga-ref, qga/qapi-schema.json).

Each method is one command; all raise what `AgentChannel.call` raises, and Failed when the answer does
not have the promised form: the guest chooses what it answers.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from innkeeper.errors import AgentMissing, Failed, GuestTimeout
from innkeeper.guest.channel import DEADLINE_S, LINE_LIMIT_BYTES, AgentChannel, printable

# Freezing waits until the guest's file systems have written what is dirty.
FREEZE_DEADLINE_S: Final = 60.0
# Moving up to a MiB of file content through a busy TCG guest.
DATA_DEADLINE_S: Final = 30.0

_INTERFACE_KEYS: Final = ("rx-bytes", "tx-bytes", "rx-packets", "tx-packets")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AgentInfo:
    version: str
    commands: frozenset[str]
    """Names of the commands that are known and enabled."""


@dataclass(frozen=True, slots=True)
class GuestAddress:
    """One address of one of the guest's interfaces, as the guest says (it may lie)."""

    interface: str
    mac: str
    address: str
    prefix: int

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.address


@dataclass(frozen=True, slots=True)
class InterfaceCounters:
    """What one of the guest's interfaces has carried, as the guest says (it may lie)."""

    interface: str
    mac: str
    rx_bytes: int
    tx_bytes: int
    rx_packets: int
    tx_packets: int


@dataclass(frozen=True, slots=True)
class OsInfo:
    """What the guest says it is; a field it does not know is empty."""

    id: str
    name: str
    pretty_name: str
    version: str
    kernel: str
    machine: str


@dataclass(frozen=True, slots=True)
class ExecStatus:
    """State of a command started with guest-exec; everything but `exited` only counts once it is True."""

    exited: bool
    exit_code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    truncated: bool
    """The agent keeps 16 MiB of each stream; the rest was lost."""

    @property
    def status(self) -> int:
        """As a shell counts: 128 + signal for a command that a signal ended."""
        if self.signal is not None:
            return 128 + (self.signal & 0x7F)
        code = 255 if self.exit_code is None else self.exit_code
        # Windows has 32 bits of it; what is left of a failure must not look like success.
        return code if 0 <= code <= 255 else (code & 0xFF) or 255


@dataclass(frozen=True, slots=True)
class FileChunk:
    data: bytes
    eof: bool


class GuestAgent:
    """Client of the agent behind `socket_path`; cheap to make, connects at the first command."""

    def __init__(self, socket_path: Path | str, *, line_limit_bytes: int = LINE_LIMIT_BYTES) -> None:
        self.channel = AgentChannel(socket_path, line_limit_bytes=line_limit_bytes)

    async def close(self) -> None:
        await self.channel.close()

    async def execute(self, command: str, *, deadline_s: float = DEADLINE_S, **arguments: object) -> object:
        """Any command; an argument's `_` stands for `-`. For commands that have no method here."""
        named = {key.replace("_", "-"): value for key, value in arguments.items() if value is not None}
        return await self.channel.call(command, named, deadline_s=deadline_s)

    # -- the agent itself --------------------------------------------------------------------------

    async def wait_ready(self, *, deadline_s: float) -> None:
        """Wait for a fresh answer, as while a guest boots; raises AgentMissing after `deadline_s`."""
        await self.channel.sync(deadline_s=deadline_s)

    async def ping(self, *, deadline_s: float = DEADLINE_S) -> None:
        await self.execute("guest-ping", deadline_s=deadline_s)

    async def info(self) -> AgentInfo:
        answer = _dict(await self.execute("guest-info"), "guest-info")
        commands = _list(answer.get("supported_commands", []), "guest-info")
        return AgentInfo(
            version=_text(answer, "version"),
            commands=frozenset(
                _text(one, "name") for one in map(_as_dict, commands) if one.get("enabled") is True
            ),
        )

    # -- the system --------------------------------------------------------------------------------

    async def shutdown(
        self, mode: Literal["powerdown", "reboot", "halt"] = "powerdown", *, grace_s: float = 1.0
    ) -> None:
        """Ask the guest to go down. Success has no answer: silence for `grace_s` seconds, or QEMU's
        exit, counts as accepted. Whether it really went down, only QEMU can tell."""
        # A handshake first, so that silence cannot mean that nobody is there.
        await self.ping()
        try:
            await self.execute("guest-shutdown", mode=mode, deadline_s=grace_s)
        except (GuestTimeout, AgentMissing):
            return

    async def network_interfaces(self) -> tuple[GuestAddress, ...]:
        """All addresses of the guest except loopback, in the guest's order."""
        command = "guest-network-get-interfaces"
        found = []
        for one in map(_as_dict, _list(await self.execute(command), command)):
            name, mac = _text(one, "name"), _text(one, "hardware-address")
            for entry in map(_as_dict, _list(one.get("ip-addresses", []), command)):
                try:
                    address = ipaddress.ip_address(_text(entry, "ip-address").partition("%")[0])
                except ValueError as error:
                    raise Failed(f"the guest agent reported a bad address: {printable(str(error))}") from None
                if not address.is_loopback:
                    prefix = _int(entry.get("prefix", address.max_prefixlen), command)
                    found.append(GuestAddress(name, mac, str(address), prefix))
        return tuple(found)

    async def interface_counters(self, *, deadline_s: float = DEADLINE_S) -> tuple[InterfaceCounters, ...]:
        """Of all interfaces that the guest counts, in the guest's order."""
        command = "guest-network-get-interfaces"
        found = []
        for one in map(_as_dict, _list(await self.execute(command, deadline_s=deadline_s), command)):
            if "statistics" in one:
                told = _dict(one["statistics"], command)
                values = (_count(told.get(key), command) for key in _INTERFACE_KEYS)
                found.append(InterfaceCounters(_text(one, "name"), _text(one, "hardware-address"), *values))
        return tuple(found)

    async def host_name(self) -> str:
        return _text(_dict(await self.execute("guest-get-host-name"), "guest-get-host-name"), "host-name")

    async def os_info(self) -> OsInfo:
        answer = _dict(await self.execute("guest-get-osinfo"), "guest-get-osinfo")
        return OsInfo(
            id=_text(answer, "id"),
            name=_text(answer, "name"),
            pretty_name=_text(answer, "pretty-name"),
            version=_text(answer, "version"),
            kernel=_text(answer, "kernel-release"),
            machine=_text(answer, "machine"),
        )

    async def set_time(self, time_ns: int | None = None) -> None:
        """Set the guest's clock to `time_ns` nanoseconds since the epoch, or to its hardware clock."""
        await self.execute("guest-set-time", time=time_ns)

    async def fsfreeze_status(self) -> Literal["thawed", "frozen"]:
        answer = await self.execute("guest-fsfreeze-status")
        if answer == "thawed" or answer == "frozen":
            return answer
        raise _nonsense("guest-fsfreeze-status")

    async def fsfreeze_freeze(self) -> int:
        """Freeze all writable file systems; how many were frozen. Thaw soon: the guest stands still."""
        answer = await self.execute("guest-fsfreeze-freeze", deadline_s=FREEZE_DEADLINE_S)
        return _int(answer, "guest-fsfreeze-freeze")

    async def fsfreeze_thaw(self) -> int:
        answer = await self.execute("guest-fsfreeze-thaw", deadline_s=FREEZE_DEADLINE_S)
        return _int(answer, "guest-fsfreeze-thaw")

    # -- commands ----------------------------------------------------------------------------------

    async def exec_start(
        self,
        path: str,
        args: Sequence[str] = (),
        *,
        env: Sequence[str] | None = None,
        stdin: bytes | None = None,
        capture: bool = True,
    ) -> int:
        """Start a command, return its process id in the guest. `env` (KEY=VALUE) replaces the whole
        environment. Raises Failed when the program cannot be started."""
        answer = await self.execute(
            "guest-exec",
            path=path,
            arg=list(args) or None,
            env=list(env) if env is not None else None,
            input_data=base64.b64encode(stdin).decode() if stdin is not None else None,
            capture_output=capture,
            deadline_s=DATA_DEADLINE_S,
        )
        return _int(_dict(answer, "guest-exec").get("pid"), "guest-exec")

    async def exec_status(self, pid: int) -> ExecStatus:
        """Whether it ended; the agent forgets a command once it has told its end."""
        command = "guest-exec-status"
        answer = _dict(await self.execute(command, pid=pid, deadline_s=DATA_DEADLINE_S), command)
        return ExecStatus(
            exited=answer.get("exited") is True,
            exit_code=_optional_int(answer.get("exitcode"), command),
            signal=_optional_int(answer.get("signal"), command),
            stdout=_bytes(answer.get("out-data", ""), command),
            stderr=_bytes(answer.get("err-data", ""), command),
            truncated=answer.get("out-truncated") is True or answer.get("err-truncated") is True,
        )

    # -- files -------------------------------------------------------------------------------------

    async def file_open(self, path: str, mode: str) -> int:
        """A handle for the other calls; `mode` as for fopen(3). The agent blocks on a FIFO whose other
        end nobody has open."""
        return _int(await self.execute("guest-file-open", path=path, mode=mode), "guest-file-open")

    async def file_read(self, handle: int, count: int) -> FileChunk:
        """Up to `count` bytes; fewer, with `eof`, at the present end of the file."""
        command = "guest-file-read"
        answer = _dict(
            await self.execute(command, handle=handle, count=count, deadline_s=DATA_DEADLINE_S), command
        )
        data = _bytes(answer.get("buf-b64", ""), command)
        if len(data) > count:
            raise _nonsense(command)
        return FileChunk(data, answer.get("eof") is True)

    async def file_write(self, handle: int, data: bytes) -> None:
        """Write all of `data`, or raise. What stdio still holds is only written by flush or close."""
        command = "guest-file-write"
        encoded = base64.b64encode(data).decode()
        answer = _dict(
            await self.execute(command, handle=handle, buf_b64=encoded, deadline_s=DATA_DEADLINE_S), command
        )
        if _int(answer.get("count"), command) != len(data):
            raise Failed("the guest wrote only a part of the data", hint="its disk may be full")

    async def file_flush(self, handle: int) -> None:
        await self.execute("guest-file-flush", handle=handle)

    async def file_close(self, handle: int) -> None:
        await self.execute("guest-file-close", handle=handle)


# -- answers have the form they should have, or Failed -------------------------------------------------


def _nonsense(command: str) -> Failed:
    return Failed(f"the guest agent's answer to {command} makes no sense")


def _checked(value: object, kind: type[T], command: str) -> T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _nonsense(command)
    return value


def _dict(value: object, command: str) -> dict[str, Any]:
    return _checked(value, dict, command)


def _as_dict(value: object) -> dict[str, Any]:
    return _checked(value, dict, "a list")


def _list(value: object, command: str) -> list[Any]:
    return _checked(value, list, command)


def _int(value: object, command: str) -> int:
    return _checked(value, int, command)


def _count(value: object, command: str) -> int:
    """A counter of 64 bits at most."""
    number = _int(value, command)
    if not 0 <= number < 1 << 64:
        raise _nonsense(command)
    return number


def _optional_int(value: object, command: str) -> int | None:
    return None if value is None else _int(value, command)


def _text(answer: dict[str, Any], key: str) -> str:
    return printable(_checked(answer.get(key, ""), str, key))


def _bytes(value: object, command: str) -> bytes:
    try:
        return base64.b64decode(_checked(value, str, command), validate=True)
    except (binascii.Error, ValueError):
        raise _nonsense(command) from None
