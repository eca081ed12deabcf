"""What a handle on an instance is: its data as last seen, and how its verbs are sent."""

from __future__ import annotations

from typing import Any, TypeVar

from innkeeper.client.transport import Transport, segment, verb_deadline

Json = dict[str, Any]
H = TypeVar("H", bound="Handle")


class Handle:
    def __init__(self, transport: Transport, data: Json) -> None:
        self._transport = transport
        self.data = data

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, state={self.state!r})"

    @property
    def name(self) -> str:
        return str(self.data["name"])

    @property
    def state(self) -> str:
        return str(self.data.get("state", "unknown"))

    @property
    def ready(self) -> bool:
        return bool(self.data.get("ready"))

    @property
    def addresses(self) -> list[str]:
        return list(self.data.get("addresses") or [])

    @property
    def _path(self) -> str:
        return f"/v1/instances/{segment(self.name)}"

    def refresh(self: H) -> H:
        self.data = self._transport.json("GET", self._path)
        return self

    def _verb(self: H, verb: str, body: Json, timeout_s: float | None) -> H:
        if timeout_s is not None:
            body = body | {"timeout_s": timeout_s}
        self.data = self._transport.json(
            "POST", f"{self._path}/{verb}", body=body, timeout_s=verb_deadline(timeout_s)
        )
        return self
