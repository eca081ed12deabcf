"""The snapshots of one instance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from innkeeper.client.transport import Transport, segment, verb_deadline

if TYPE_CHECKING:
    from innkeeper.client.instance import Instance

Json = dict[str, Any]
# As long as the daemon gives it: writing memory takes as long as the disk takes.
CREATE_S: Final = 3600.0


class Snapshots:
    def __init__(self, transport: Transport, instance: str) -> None:
        self._transport = transport
        self._path = f"/v1/instances/{segment(instance)}"

    def list(self) -> list[Json]:
        """The oldest first; `parent` names the one each derives from."""
        return list(self.tree()["snapshots"])

    def tree(self) -> Json:
        """`snapshots`, and `current`: the name of the one that the disks derive from."""
        answer: Json = self._transport.json("GET", f"{self._path}/snapshots")
        return answer

    def get(self, name: str) -> Json:
        answer: Json = self._transport.json("GET", self._one(name))
        return answer

    def create(
        self,
        name: str | None = None,
        *,
        disks_only: bool = False,
        compress: bool = False,
        timeout_s: float | None = None,
    ) -> Json:
        """Take one: with memory if the instance runs; it runs on meanwhile. Returns when it is on disk."""
        body: Json = {"disks_only": disks_only, "compress": compress}
        body |= {"name": name} if name else {}
        body |= {"timeout_s": timeout_s} if timeout_s is not None else {}
        deadline_s = verb_deadline(CREATE_S if timeout_s is None else timeout_s)
        answer: Json = self._transport.json(
            "POST", f"{self._path}/snapshots", body=body, timeout_s=deadline_s
        )
        return answer

    def restore(
        self,
        name: str,
        *,
        new_name: str | None = None,
        ssh_keys: bool = False,
        wait: str = "ready",
        timeout_s: float | None = None,
    ) -> Instance:
        """Go back to it, or make a new instance `new_name` from it."""
        from innkeeper.client.instance import Instance

        body: Json = {"ssh_keys": ssh_keys, "wait": wait}
        body |= {"new_name": new_name} if new_name else {}
        body |= {"timeout_s": timeout_s} if timeout_s is not None else {}
        answer: Json = self._transport.json(
            "POST", f"{self._one(name)}/restore", body=body, timeout_s=verb_deadline(timeout_s)
        )
        return Instance(self._transport, answer)

    def remove(self, name: str) -> None:
        self._transport.json("DELETE", self._one(name), timeout_s=verb_deadline(None))

    def _one(self, name: str) -> str:
        return f"{self._path}/snapshots/{segment(name)}"
