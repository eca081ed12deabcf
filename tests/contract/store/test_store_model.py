"""Any sequence of operations has the same results on every back-end and on a model of plain dicts."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import FakeClock, run, take
from innkeeper.errors import BadRequest, Compacted, InnkeeperError, NotFound
from innkeeper.store.core import LogStore
from innkeeper.store.kv import (
    Compare,
    Delete,
    Event,
    EventKind,
    Field,
    KeyValue,
    Listing,
    Op,
    Put,
    Relation,
    TxnResult,
)
from innkeeper.store.memory import MemoryStore
from innkeeper.store.sqlite import SqliteStore

KEYS = ["a", "a/", "a/b", "a/c", "a0", "b", "é"]
PREFIXES = ["", "a", "a/", "b", "é", "zz"]
TTL_S = 10


class Model:
    """The contract, written down as directly as possible: a whole dict for every revision."""

    def __init__(self) -> None:
        self.states: list[dict[str, KeyValue]] = [{}]  # by revision
        self.events: list[list[Event]] = [[]]
        self.floor = 0
        self.now = 0
        self.leases: list[int | None] = []  # when each runs out; None when gone

    @property
    def revision(self) -> int:
        return len(self.states) - 1

    def get(self, key: str) -> KeyValue | None:
        return self.states[-1].get(key)

    def list(self, prefix: str, revision: int) -> Listing:
        if revision > self.revision:
            raise BadRequest("future")
        if 0 < revision < self.floor:
            raise Compacted("gone")
        at = revision or self.revision
        return Listing([kv for key, kv in sorted(self.states[at].items()) if key.startswith(prefix)], at)

    def txn(self, compares: list[Compare], ops: list[Op]) -> TxnResult:
        state, revision = dict(self.states[-1]), self.revision + 1
        self._refuse_duplicates(ops)
        missing = KeyValue("", b"", 0, 0, 0)
        for compare in compares:
            seen = getattr(state.get(compare.key, missing), compare.field.value)
            order = (seen > compare.target) - (seen < compare.target)
            if order not in {"=": [0], "!=": [-1, 1], ">": [1], "<": [-1]}[compare.relation.value]:
                return TxnResult(
                    False, revision - 1, {c.key: state[c.key] for c in compares if c.key in state}
                )
        for op in ops:
            if isinstance(op, Put) and op.lease:
                self._alive(op.lease)
        events = []
        for op in ops:
            old = state.get(op.key)
            if isinstance(op, Put):
                created = old.create_revision if old else revision
                new = KeyValue(op.key, op.value, created, revision, old.version + 1 if old else 1, op.lease)
                state[op.key] = new
                events.append(Event(EventKind.PUT, new, old))
            else:
                for key in sorted(state):
                    if key == op.key or (op.prefix and key.startswith(op.key)):
                        events.append(
                            Event(EventKind.DELETE, KeyValue(key, b"", 0, revision, 0), state.pop(key))
                        )
        if events:
            self.states.append(state)
            self.events.append(events)
        return TxnResult(True, self.revision)

    def _refuse_duplicates(self, ops: list[Op]) -> None:
        for n, one in enumerate(ops):
            for other in ops[n + 1 :]:
                for p, q in ((one, other), (other, one)):
                    if p.key == q.key or (isinstance(p, Delete) and p.prefix and q.key.startswith(p.key)):
                        raise BadRequest("twice")

    def watch(self, first: int) -> list[list[Event]]:
        if first < self.floor:
            raise Compacted("gone")
        return self.events[first:]

    def grant(self) -> int:
        self.leases.append(self.now + TTL_S)
        return len(self.leases)

    def _alive(self, lease: int) -> None:
        ends = self.leases[lease - 1] if 0 < lease <= len(self.leases) else None
        if ends is None or ends <= self.now:
            raise NotFound("lease")

    def keepalive(self, lease: int) -> float:
        self._alive(lease)
        self.leases[lease - 1] = self.now + TTL_S
        return TTL_S

    def revoke(self, lease: int) -> None:
        if not 0 < lease <= len(self.leases) or self.leases[lease - 1] is None:
            raise NotFound("lease")
        self.leases[lease - 1] = None
        self.txn([], [Delete(key) for key, kv in sorted(self.states[-1].items()) if kv.lease == lease])

    def advance(self, seconds: int) -> None:
        self.now += seconds
        due = [(ends, n) for n, ends in enumerate(self.leases, 1) if ends is not None and ends <= self.now]
        for _, lease in sorted(due):
            self.revoke(lease)

    def compact(self, revision: int) -> None:
        if revision > self.revision:
            raise BadRequest("future")
        self.floor = max(self.floor, revision)


@dataclass(frozen=True)
class Step:
    """One operation. Numbers are small, so that they often name a revision or lease that exists."""

    verb: str
    text: str = ""
    number: int = 0
    compares: tuple[Compare, ...] = ()
    ops: tuple[Op, ...] = ()

    def on_model(self, model: Model) -> Any:
        match self.verb:
            case "get":
                return model.get(self.text)
            case "list":
                return model.list(self.text, self.number)
            case "txn":
                return model.txn(list(self.compares), list(self.ops))
            case "watch":
                return model.watch(min(max(self.number, 1), model.revision or 1))
            case "grant":
                return model.grant()
            case "advance":
                return model.advance(self.number)
            case "revision":
                return model.revision
        return getattr(model, self.verb)(self.number)

    async def on_store(self, store: LogStore, clock: FakeClock) -> Any:
        match self.verb:
            case "get":
                return await store.get(self.text)
            case "list":
                return await store.list(self.text, revision=self.number)
            case "txn":
                return await store.txn(self.compares, self.ops, durable=False)
            case "watch":
                current = await store.revision()
                first = min(max(self.number, 1), current or 1)
                async with store.watch("", from_revision=first) as watch:
                    return await take(watch, current - first + 1)
            case "grant":
                return await store.lease_grant(TTL_S)
            case "keepalive":
                return await store.lease_keepalive(self.number)
            case "revoke":
                return await store.lease_revoke(self.number)
            case "advance":
                clock.advance(self.number)
                await store.expire_leases()
                return None
            case "revision":
                return await store.revision()
        return await store.compact(self.number)


keys, prefixes, values = st.sampled_from(KEYS), st.sampled_from(PREFIXES), st.sampled_from([b"", b"1", b"2"])
small = st.integers(0, 12)
leases = st.sampled_from([0, 0, 0, 1, 2])
compares = st.builds(
    Compare, keys, st.sampled_from(list(Field)), st.sampled_from(list(Relation)), small
).flatmap(lambda c: values.map(lambda v: replace(c, target=v)) if c.field is Field.VALUE else st.just(c))
ops = st.one_of(
    st.builds(Put, keys, values, leases),
    st.builds(Put, keys, values),
    st.builds(Delete, keys),
    st.builds(Delete, prefixes, st.just(True)),
)
txns = st.builds(
    Step,
    st.just("txn"),
    compares=st.lists(compares, max_size=2).map(tuple),
    ops=st.lists(ops, max_size=4, unique_by=lambda op: op.key).map(tuple),
)
others = st.one_of(
    st.builds(Step, st.just("get"), keys),
    st.builds(Step, st.just("list"), prefixes, small),
    st.builds(Step, st.sampled_from(["watch", "keepalive", "compact", "revoke", "advance"]), number=small),
    st.builds(Step, st.sampled_from(["grant", "revision"])),
)
puts = st.builds(lambda op: Step("txn", ops=(op,)), st.builds(Put, keys, values, leases))


async def outcome(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except InnkeeperError as error:
        return error.code


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(puts, txns, others), min_size=5, max_size=30))
def test_same_results_everywhere(steps: list[Step]) -> None:
    async def check(directory: Path) -> None:
        model = Model()

        async def on_model(step: Step) -> Any:
            return step.on_model(model)

        clocks = [FakeClock(), FakeClock()]
        memory = MemoryStore(clocks[0])
        sqlite = await SqliteStore.open(directory / "store.db", clocks[1])
        try:
            # two leases from the start, and a few changes, so that most of what follows means something
            start = [
                Step("grant"),
                Step("grant"),
                *(Step("txn", ops=(Put(key, b"0", 1),)) for key in KEYS[:3]),
            ]
            for number, step in enumerate([*start, *steps, Step("list"), Step("watch")]):
                expected = await outcome(on_model(step))
                assert await outcome(step.on_store(memory, clocks[0])) == expected, step
                assert await outcome(step.on_store(sqlite, clocks[1])) == expected, step
                if number == len(start) + len(steps) // 2:  # a reopened store is the same store
                    await sqlite.close()
                    sqlite = await SqliteStore.open(directory / "store.db", clocks[1])
        finally:
            await memory.close()
            await sqlite.close()

    # In memory where possible: what a disk does to SQLite is another test's business.
    shm = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shm) as directory:
        run(check(Path(directory)))
