"""A store that fails when told to: for tests of what callers do then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from innkeeper.store.kv import Compare, KeyValue, Listing, Op, Store, TxnResult, Watch


class FaultyStore:
    """Passes everything on to `inner`, except for what these two say.

    `fail_next_txn`: raised by the next `txn`, once, before anything is changed.
    `after_commit`: called after each `txn` whose compares held, before its caller hears of it;
    when it raises, the change is in the store and the caller sees the exception, as in a crash.
    """

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.fail_next_txn: BaseException | None = None
        self.after_commit: Callable[[], object] | None = None

    async def get(self, key: str) -> KeyValue | None:
        return await self.inner.get(key)

    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        return await self.inner.list(prefix, revision=revision)

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], *, durable: bool = True
    ) -> TxnResult:
        failure, self.fail_next_txn = self.fail_next_txn, None
        if failure is not None:
            raise failure
        result = await self.inner.txn(compares, then, durable=durable)
        if result.succeeded and self.after_commit is not None:
            self.after_commit()
        return result

    def watch(self, prefix: str, *, from_revision: int = 0) -> AbstractAsyncContextManager[Watch]:
        return self.inner.watch(prefix, from_revision=from_revision)

    async def lease_grant(self, ttl_s: float) -> int:
        return await self.inner.lease_grant(ttl_s)

    async def lease_keepalive(self, lease: int) -> float:
        return await self.inner.lease_keepalive(lease)

    async def lease_revoke(self, lease: int) -> None:
        await self.inner.lease_revoke(lease)

    async def compact(self, revision: int) -> None:
        await self.inner.compact(revision)

    async def revision(self) -> int:
        return await self.inner.revision()

    async def close(self) -> None:
        await self.inner.close()
