"""Typed access to the store, and waiting for the agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from api_harness import HOST, TINY, UID, record

from fakes.settler import Settler
from helpers import run
from innkeeper.errors import (
    BadRequest,
    Conflict,
    EngineError,
    GuestTimeout,
    NameTaken,
    NotFound,
    SpecError,
    StartFailed,
    StoreCorrupt,
    StoreError,
)
from innkeeper.spec.instance import InstanceRecord, InstanceStatus, Power, State
from innkeeper.store.kv import Put
from innkeeper.store.memory import MemoryStore
from innkeeper.store.repo import CHANGE_ATTEMPTS, Repo


@asynccontextmanager
async def repo_of() -> AsyncIterator[Repo]:
    store = MemoryStore()
    yield Repo(store)
    await store.close()


def raised(old: InstanceRecord, **wanted: object) -> InstanceRecord:
    update = {**wanted, "generation": old.wanted.generation + 1}
    return old.model_copy(update={"wanted": old.wanted.model_copy(update=update)})


def test_records_come_back_as_they_were() -> None:
    async def scenario() -> None:
        async with repo_of() as repo:
            made = await repo.create_instance(record())
            assert (await repo.instance("web")).value == record()
            revision = await repo.put_status("web", UID, InstanceStatus(state=State.RUNNING, pid=7))
            view = await repo.view("web")
            assert (view.status.pid, view.revision) == (7, revision)
            assert view.revision > made.revision
            assert [one.name for one in await repo.instances()] == ["web"]
            await repo.put_image(TINY)
            await repo.put_host(HOST)
            assert (await repo.image("tiny")).value == TINY
            assert await repo.host("h1") == HOST
            assert (await repo.images(), await repo.hosts()) == ([TINY], [HOST])

    run(scenario())


def test_a_status_of_an_earlier_instance_counts_for_nothing() -> None:
    async def scenario() -> None:
        async with repo_of() as repo:
            await repo.create_instance(record())
            await repo.put_status("web", "another-uid", InstanceStatus(generation=9))
            assert (await repo.view("web")).status == InstanceStatus()
            assert (await repo.instances())[0].status.generation == 0

    run(scenario())


def test_no_status_outlives_its_instance() -> None:
    async def scenario() -> None:
        async with repo_of() as repo:
            assert await repo.put_status("web", UID, InstanceStatus()) is None
            await repo.create_instance(record())
            await repo.put_status("web", UID, InstanceStatus())
            assert not await repo.remove_instance("web", "another-uid")
            assert await repo.remove_instance("web", UID)
            assert (await repo.store.list("")).items == []

    run(scenario())


def test_names() -> None:
    async def scenario() -> None:
        async with repo_of() as repo:
            await repo.create_instance(record())
            with pytest.raises(NameTaken, match="inn rm web"):
                await repo.create_instance(record())
            with pytest.raises(NotFound, match="did you mean web"):
                await repo.view("webb")
            with pytest.raises(NotFound, match="inn image build debian"):
                await repo.image("debian")
            await repo.put_image(TINY)
            with pytest.raises(NameTaken):
                await repo.put_image(TINY)

    run(scenario())


@pytest.mark.parametrize("value", [b"{oops", b"[]", b'{"name":"web"}', b"\xff"])
def test_damaged_values_name_their_key(value: bytes) -> None:
    async def scenario() -> None:
        async with repo_of() as repo:
            await repo.store.txn([], [Put("instances/web", value)])
            for call in (repo.view("web"), repo.instances(), repo.settle("web", 1, 1)):
                with pytest.raises(StoreCorrupt, match="instances/web"):
                    await call

    run(scenario())


def test_a_value_too_large_is_refused() -> None:
    async def scenario() -> None:
        async with repo_of() as repo:
            spec = record().spec.model_copy(update={"labels": {"x": "y" * (2 << 20)}})
            with pytest.raises(SpecError, match="Too large"):
                await repo.create_instance(record().model_copy(update={"spec": spec}))

    run(scenario())


def test_changes_at_once_are_all_kept() -> None:
    async def scenario() -> None:
        async with repo_of() as repo:
            await repo.create_instance(record())

            async def change() -> None:
                await repo.change_instance("web", lambda old, status: raised(old))

            await asyncio.gather(*(change() for _ in range(20)))
            assert (await repo.view("web")).record.wanted.generation == 21

    run(scenario())


def test_change_gives_up_in_the_end() -> None:
    async def scenario() -> None:
        async with repo_of() as repo:
            await repo.create_instance(record())
            calls = 0

            async def disturb() -> None:
                kv = await repo.store.get("instances/web")
                assert kv is not None
                await repo.store.txn([], [Put(kv.key, kv.value)])

            store_txn = repo.store.txn

            async def raced(compares, then, *, durable=True):  # type: ignore[no-untyped-def]
                nonlocal calls
                if compares:
                    calls += 1
                    await disturb()
                return await store_txn(compares, then, durable=durable)

            repo.store.txn = raced  # type: ignore[method-assign]
            with pytest.raises(Conflict, match="changed by others"):
                await repo.change_instance("web", lambda old, status: raised(old))
            assert calls == CHANGE_ATTEMPTS

    run(scenario())


def test_a_refused_or_empty_change_writes_nothing() -> None:
    async def scenario() -> None:
        async with repo_of() as repo:
            made = await repo.create_instance(record())

            def refuse(old: InstanceRecord, status: InstanceStatus) -> InstanceRecord:
                raise BadRequest("no")

            with pytest.raises(BadRequest):
                await repo.change_instance("web", refuse)
            await repo.change_instance("web", lambda old, status: None)
            await repo.change_instance("web", lambda old, status: old)
            assert await repo.store.revision() == made.revision

    run(scenario())


def test_settle() -> None:
    async def scenario() -> None:
        async with repo_of() as repo, Settler(repo.store) as settler:
            await repo.create_instance(record(power=Power.ON, epoch=1))
            view = await repo.settle("web", 1, 5)
            assert (view.status.state, view.status.generation) == (State.RUNNING, 1)
            assert (await repo.settle("web", 1, 5)).status.generation == 1  # settled already
            settler.fail["web"] = EngineError("QEMU said no", hint="ask again", details={"class": "x"})
            await repo.change_instance("web", lambda old, status: raised(old))
            with pytest.raises(EngineError, match="QEMU said no") as caught:
                await repo.settle("web", 2, 5)
            assert (caught.value.hint, caught.value.details) == ("ask again", {"class": "x"})

    run(scenario())


def test_settle_at_the_deadline_tells_the_last_state() -> None:
    async def scenario() -> None:
        async with repo_of() as repo:
            await repo.create_instance(record())
            await repo.put_status("web", UID, InstanceStatus(state=State.STARTING))
            with pytest.raises(GuestTimeout, match="starting") as caught:
                await repo.settle("web", 1, 0.05)
            assert caught.value.details["state"] == "starting"

    run(scenario())


def test_the_failure_of_a_first_start_is_told_once_all_is_gone() -> None:
    async def scenario() -> None:
        async with repo_of() as repo, Settler(repo.store) as settler:
            settler.fail["web"] = StartFailed("QEMU died")
            for _ in range(10):
                await repo.create_instance(record(power=Power.ON, remove_if_start_fails=True))
                with pytest.raises(StartFailed, match="QEMU died"):
                    await repo.settle("web", 1, 5)
                assert (await repo.store.list("")).items == []

    run(scenario())


def test_settle_when_it_goes_away_or_is_another() -> None:
    async def scenario() -> None:
        async with repo_of() as repo:
            with pytest.raises(NotFound):
                await repo.settle("web", 1, 5)
            await repo.create_instance(record())
            waiting = asyncio.create_task(repo.settle("web", 1, 5))
            await asyncio.sleep(0.01)
            await repo.remove_instance("web", UID)
            with pytest.raises(NotFound, match="removed meanwhile"):
                await waiting
            await repo.create_instance(record().model_copy(update={"uid": "new"}))
            with pytest.raises(NotFound, match="removed meanwhile"):
                await repo.settle("web", 1, 5, uid=UID)

    run(scenario())


def test_settle_removed() -> None:
    async def scenario() -> None:
        async with repo_of() as repo, Settler(repo.store) as settler:
            await repo.create_instance(record())
            await repo.settle("web", 1, 5)
            settler.fail["web"] = EngineError("busy")
            await repo.change_instance("web", lambda old, status: raised(old, removed=True))
            with pytest.raises(EngineError):
                await repo.settle_removed("web", 2, 5, uid=UID)
            settler.fail.clear()
            await repo.change_instance("web", lambda old, status: raised(old, removed=True))
            assert await repo.settle_removed("web", 3, 5, uid=UID) == await repo.store.revision()

    run(scenario())


def test_wait_for() -> None:
    async def scenario() -> None:
        async with repo_of() as repo, Settler(repo.store) as settler:
            settler.hang.add("web")
            await repo.create_instance(record(power=Power.ON, epoch=1, remove_when_ended=True))
            waiting = asyncio.create_task(
                repo.wait_for("web", lambda view: view.status.pid == 9, 5, gone_ok=True)
            )
            await asyncio.sleep(0.01)
            # the last status is put just before the end; whoever waits sees it
            await repo.put_status("web", UID, InstanceStatus(state=State.STOPPED, pid=8))
            await repo.remove_instance("web", UID)
            assert (await waiting).status.pid == 8

    run(scenario())


def test_others_of_a_similar_name_do_not_count() -> None:
    async def scenario() -> None:
        async with repo_of() as repo:
            await repo.create_instance(record("web"))
            waiting = asyncio.create_task(repo.settle("web", 1, 0.2))
            await asyncio.sleep(0.01)
            await repo.create_instance(record("web2"))
            await repo.put_status("web2", UID, InstanceStatus(generation=5))
            await repo.remove_instance("web2", UID)
            with pytest.raises(GuestTimeout):
                await waiting

    run(scenario())


def test_waiting_ends_when_the_store_does() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        repo = Repo(store)
        await repo.create_instance(record())
        waiting = asyncio.create_task(repo.settle("web", 1, 5))
        await asyncio.sleep(0.01)
        await store.close()
        with pytest.raises(StoreError):
            await waiting

    run(scenario())
