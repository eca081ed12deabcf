"""An agent in a world without VMs: fake engine, store in memory, real files in a temporary directory."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from innkeeper.agent.context import Context, QemuView
from innkeeper.agent.pool import Pool
from innkeeper.agent.reconcile import Reconciler
from innkeeper.agent.recovery import recover
from innkeeper.agent.snapshots import SnapshotKeeper
from innkeeper.clock import SystemClock
from innkeeper.drivers.cgroup import Cgroups
from innkeeper.drivers.run import FaultyRunner, SystemRunner
from innkeeper.engine.fake import FakeEngine, FakeMachine
from innkeeper.paths import Paths
from innkeeper.spec.host import HostNode
from innkeeper.spec.instance import InstanceRecord, InstanceSpec, Power, Wanted
from innkeeper.spec.overcommit import HostSettings
from innkeeper.store import keys
from innkeeper.store.kv import Delete
from innkeeper.store.memory import MemoryStore
from innkeeper.store.repo import Repo
from innkeeper.store.view import InstanceView


class FakeHost:
    name = "host"

    def __init__(self) -> None:
        self.boot_id = "boot-1"
        self.available = 8 << 30
        self.huge_free = 0
        self.nodes: tuple[HostNode, ...] = ()
        self.settings = HostSettings()

    def qemu(self, architecture: str = "x86_64") -> QemuView:
        return QemuView(
            "/usr/bin/qemu-system-x86_64", "7.2.0", {"q35": "pc-q35-7.2"}, "missing", "no /dev/kvm"
        )

    def memory_available_bytes(self) -> int:
        return self.available

    def hugepages_free(self, page_bytes: int) -> int:
        return self.huge_free

    def numa(self) -> tuple[HostNode, ...]:
        return self.nodes


class World:
    """`async with world.daemon():` runs an agent; leaving it is a clean stop, `world.crash` is not
    needed: the engine's machines and the store outlive every daemon."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root / "state", root / "run")
        for directory in (
            self.paths.instances,
            self.paths.snapshots,
            self.paths.machines,
            self.paths.layers,
            self.paths.moments,
        ):
            directory.mkdir(parents=True)
        self.engine = FakeEngine(opens_agent=False)
        self.store = MemoryStore()
        self.repo = Repo(self.store)
        self.runner = FaultyRunner(SystemRunner())
        self.host = FakeHost()
        self.cgroups = Cgroups()
        self.ctx = self._context()

    def _context(self) -> Context:
        return Context(
            self.paths,
            self.runner,
            self.engine,
            self.repo,
            SystemClock(),
            self.host,
            cgroups=self.cgroups,
        )

    @contextlib.asynccontextmanager
    async def daemon(self) -> AsyncIterator[Context]:
        self.ctx = self._context()
        pool = Pool(self.ctx)
        await pool.recover(self.engine.find_running())
        reconciler = Reconciler(self.ctx)
        await reconciler.load(*await recover(self.ctx))
        snapshots = SnapshotKeeper(self.ctx)
        await snapshots.load()
        running = [asyncio.create_task(one.run()) for one in (reconciler, snapshots, pool)]
        try:
            yield self.ctx
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await pool.close()
            await snapshots.close()
            await reconciler.close()

    async def create(
        self,
        name: str = "web",
        *,
        on: bool = True,
        policy: str = "never",
        spec: Mapping[str, Any] | None = None,
        **wanted: Any,
    ) -> InstanceView:
        """What the API's `create` writes; returns once it has settled."""
        asked = InstanceSpec.model_validate(
            {"boot": {"kernel": "/boot/vmlinuz"}, "networks": [], "restart_policy": policy, **(spec or {})}
        )
        power = Power.ON if on else Power.OFF
        record = InstanceRecord(
            name=name,
            uid=str(uuid.uuid4()),
            created_at=0.0,
            host="host",
            spec=asked,
            wanted=Wanted(generation=1, power=power, epoch=1 if on else 0, **wanted),
        )
        await self.repo.create_instance(record)
        return await self.repo.settle(name, 1, 5.0)

    async def want(self, name: str = "web", *, wait: bool = True, **changes: Any) -> InstanceView:
        """What a verb writes: changes of `wanted`, and the next generation."""

        def change(record: InstanceRecord, _: object) -> InstanceRecord:
            fields = {**changes, "generation": record.wanted.generation + 1}
            return record.model_copy(update={"wanted": record.wanted.model_copy(update=fields)})

        view = await self.repo.change_instance(name, change)
        return await self.repo.settle(name, view.record.wanted.generation, 5.0) if wait else view

    async def remove(self, name: str) -> None:
        view = await self.want(name, removed=True, wait=False)
        await self.repo.settle_removed(name, view.record.wanted.generation, 5.0, uid=view.record.uid)

    async def remove_from_store(self, name: str) -> None:
        """Behind the agent's back."""
        await self.store.txn([], [Delete(keys.instance(name)), Delete(keys.status(name))])

    def machine(self, name: str = "web") -> FakeMachine:
        machine = self.ctx.running[self.ctx.records[name].uid].machine
        assert isinstance(machine, FakeMachine)
        return machine
