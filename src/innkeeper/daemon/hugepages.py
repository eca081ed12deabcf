"""The pools of huge pages this daemon keeps: what was asked for, made again after a boot of the host."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any, Final

from innkeeper.daemon.host import LocalHost
from innkeeper.drivers import hugepages
from innkeeper.engine.kvm import write_json
from innkeeper.errors import InnkeeperError, NotFound
from innkeeper.units import MiB

log = logging.getLogger("innkeeper.hugepages")

# What stays for everything else on the host.
RESERVE_BYTES: Final = 128 * MiB


class HugePagePools:
    """One change at a time: each reads the number back that it wrote."""

    def __init__(self, host: LocalHost, state: Path, root: Path = Path("/")) -> None:
        self._host = host
        self._file = state / "hugepages.json"
        self._root = root
        self._turn = asyncio.Lock()

    async def resize(self, page_bytes: int, pages: int, node: int | None) -> int:
        """The pool, on one NUMA node or all, has `pages` then. Raises as drivers.hugepages.resize."""
        async with self._turn:
            pool = hugepages.pool(page_bytes, node, self._root)
            available = max(0, self._available(node) - RESERVE_BYTES)
            got = await asyncio.to_thread(hugepages.resize, pool, pages, available)
            wishes = [one for one in self._wishes() if not _same(one, page_bytes, node)]
            if node is None:  # a number for the whole host says what all nodes have
                wishes = [one for one in wishes if one["page_bytes"] != page_bytes]
            if pages:
                wishes.append({"page_bytes": page_bytes, "pages": pages, "node": node})
            write_json(self._file, {"boot_id": self._host.boot_id, "pools": wishes})
        return got

    async def restore(self) -> None:
        """After a boot of the host: make the pools as they were asked for, as far as that can be done."""
        try:
            if json.loads(self._file.read_text())["boot_id"] == self._host.boot_id:
                return
        except (OSError, ValueError, KeyError, TypeError):
            return
        for wish in self._wishes():
            try:
                pool = hugepages.pool(wish["page_bytes"], wish["node"], self._root)
                if pool.total < wish["pages"]:
                    await self.resize(wish["page_bytes"], wish["pages"], wish["node"])
            except (InnkeeperError, OSError) as error:
                log.warning("huge pages: %s", error)

    def _available(self, node: int | None) -> int:
        nodes = self._host.numa()
        if node is None:
            return self._host.memory_available_bytes()
        found = next((one for one in nodes if one.id == node), None)
        if found is None:
            raise NotFound(f"This host has no NUMA node {node}", hint="see inn host show")
        return found.available_bytes

    def _wishes(self) -> list[dict[str, Any]]:
        try:
            wishes = json.loads(self._file.read_text())["pools"]
            return [
                {"page_bytes": int(one["page_bytes"]), "pages": int(one["pages"]), "node": one["node"]}
                for one in wishes
            ]
        except (OSError, ValueError, KeyError, TypeError):
            return []


def _same(wish: dict[str, Any], page_bytes: int, node: int | None) -> bool:
    return bool(wish["page_bytes"] == page_bytes and wish["node"] == node)
