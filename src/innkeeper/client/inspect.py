"""Looking into a running VM: what `inn inspect` shows, as methods of an instance. Nothing here halts it."""

from __future__ import annotations

from typing import Any

from innkeeper.client.handle import Handle
from innkeeper.client.transport import segment

Json = dict[str, Any]


class Inspectable(Handle):
    """The inspections of an instance. Keys of the answers: docs/reference/api.md."""

    def inspect_memory(
        self, address: str | int | None = None, *, physical: bool = False, cpu: int = 0, numa: bool = False
    ) -> Json:
        """A map of all its memory; or one address (a number, hexadecimal text, or a register such as `rip`)
        followed through the guest's page tables to the host's memory."""
        if address is None:
            return self._inspect("memory", numa=numa)
        text = hex(address) if isinstance(address, int) else address
        return self._inspect(f"memory/{segment(text)}", physical=physical, cpu=cpu)

    def inspect_cpu(self) -> Json:
        """What each vCPU is doing."""
        return self._inspect("cpu")

    def inspect_disk(self) -> Json:
        """Its disks: the files they consist of, counters, limits."""
        return self._inspect("disk")

    def inspect_net(self) -> Json:
        """Its network cards, from the host's side and the guest's."""
        return self._inspect("net")

    def _inspect(self, what: str, **query: Any) -> Json:
        answer: Json = self._transport.json("GET", f"{self._path}/inspect/{what}", query=query)
        return answer
