"""restart: shut the guest down and start it anew; a stopped instance is started."""

from __future__ import annotations

from typing import Literal

from innkeeper.api.admit import Admission
from innkeeper.api.verbs import change
from innkeeper.api.verbs.start import start
from innkeeper.api.verbs.wait import wait
from innkeeper.control.lifecycle import is_active
from innkeeper.spec.instance import InstanceRecord, InstanceStatus, Power, StopMode
from innkeeper.store.repo import Repo
from innkeeper.store.view import InstanceView


async def restart(
    repo: Repo,
    admission: Admission,
    name: str,
    *,
    until: Literal["running", "ready"] = "running",
    timeout_s: float | None = None,
) -> InstanceView:
    """Restart it. `timeout_s` is what the guest gets to shut down."""
    before = await repo.view(name)
    if not is_active(before.record, before.status):
        return await start(repo, admission, name, until=until)
    limit = change.STOP_TIMEOUT_S if timeout_s is None else timeout_s

    def renewed(record: InstanceRecord, status: InstanceStatus) -> InstanceRecord:
        change.refuse_removed(record)
        return change.raised(
            record,
            power=Power.ON,
            epoch=record.wanted.epoch + 1,
            stop=StopMode.GUEST,
            stop_timeout_s=limit,
        )

    view = await repo.change_instance(name, renewed)
    view = await change.settled(repo, view, limit + change.START_TIMEOUT_S)
    return await wait(repo, name, "ready") if until == "ready" else view
