"""Every error Innkeeper reports to a person or a program.

    InnkeeperError
    +-- BadRequest            the request itself is wrong            HTTP 400, exit 2
    |   +-- SpecError         a field or unit in a spec, with its place
    +-- NotFound              no such instance, image, ...           HTTP 404, exit 3
    +-- Refused               right in form, but not now or not here HTTP 409, exit 4
    |   +-- NameTaken
    |   +-- WrongState        e.g. `exec` on a stopped VM
    |   +-- Conflict          somebody else changed it meanwhile
    |   +-- NoCapacity        memory, disk space, descriptors
    |   +-- Unsupported       this host, QEMU or guest cannot do it
    |   +-- StateInUse        another daemon holds this state directory
    +-- Failed                it was tried and did not work          HTTP 500, exit 1
        +-- StartFailed       QEMU died or the guest never became ready
        +-- GuestTimeout      the guest did not do what it was asked in time
        +-- AgentMissing      no guest agent answers
        +-- CommandFailed     a program we ran exited with an error
        +-- BadImage          not an image, truncated, or hostile
        +-- EngineError       QEMU answered a command with an error, or closed the connection
        +-- StoreError        the store cannot be read or written
        |   +-- StoreFull     no space left on its file system
        |   +-- StoreCorrupt  its file is damaged or not ours
        |   +-- Compacted     the revision asked for is gone
        +-- DaemonUnreachable no daemon answers on the socket

A message is one line: what happened and why. `hint` says what to do about it. Foreign exceptions
are translated where they enter (drivers, engine, store); nothing else may reach a user.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class InnkeeperError(Exception):
    """Base of all errors; ``str()`` is the single line a user reads."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = " ".join(message.split())
        self.hint = " ".join(hint.split())
        self.details: dict[str, Any] = dict(details or {})

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message

    def to_dict(self) -> dict[str, Any]:
        """The form an error has in the API and in ``--json`` output."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "details": self.details}


class BadRequest(InnkeeperError):
    code, http_status, exit_code = "bad_request", 400, 2


class SpecError(BadRequest):
    code = "bad_spec"


class NotFound(InnkeeperError):
    code, http_status, exit_code = "not_found", 404, 3


class Refused(InnkeeperError):
    code, http_status, exit_code = "refused", 409, 4


class NameTaken(Refused):
    code = "name_taken"


class WrongState(Refused):
    code = "wrong_state"


class Conflict(Refused):
    code = "conflict"


class NoCapacity(Refused):
    code = "no_capacity"


class Unsupported(Refused):
    code = "unsupported"


class StateInUse(Refused):
    code = "state_in_use"


class Failed(InnkeeperError):
    code = "failed"


class StartFailed(Failed):
    code = "start_failed"


class GuestTimeout(Failed):
    code = "guest_timeout"


class AgentMissing(Failed):
    code = "agent_missing"


class CommandFailed(Failed):
    code = "command_failed"


class BadImage(Failed):
    code = "bad_image"


class EngineError(Failed):
    code = "engine_error"


class StoreError(Failed):
    code = "store_error"


class StoreFull(StoreError):
    code = "store_full"


class StoreCorrupt(StoreError):
    code = "store_corrupt"


class Compacted(StoreError):
    code = "compacted"


class DaemonUnreachable(Failed):
    code = "daemon_unreachable"


def _tree(cls: type[InnkeeperError]) -> dict[str, type[InnkeeperError]]:
    found = {cls.code: cls}
    for sub in cls.__subclasses__():
        found |= _tree(sub)
    return found


def from_dict(data: Mapping[str, Any]) -> InnkeeperError:
    """Rebuild an error from its API form; an unknown code becomes a plain InnkeeperError."""
    cls = _tree(InnkeeperError).get(str(data.get("code", "")), InnkeeperError)
    return cls(
        str(data.get("message", "unknown error")),
        hint=str(data.get("hint", "")),
        details=data.get("details") or {},
    )
