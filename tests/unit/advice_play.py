"""Evidence made up for the rules of advice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from innkeeper.control.advice.evidence import AVERAGES, Bucket, Evidence
from innkeeper.spec.advice import Advice, InstanceAdvice, Trial, TrialState, Withheld
from innkeeper.spec.host import HostFacts, HostNode, HugePages
from innkeeper.spec.instance import InstanceSpec, InstanceStatus, State
from innkeeper.spec.memory import MemoryNow
from innkeeper.spec.metrics import CpuMetrics, InstanceMetrics, MemoryMetrics, NumaMetrics
from innkeeper.units import GiB, MiB

NOW = 1.7e9
STEP_S = 60.0


def cpu_rows(
    cpus: int, *readings: tuple[float, float] | tuple[float, float, float], **more: float
) -> list[Bucket]:
    """Buckets of (average, peak[, busiest]) in CPUs; `more` in each."""
    found = []
    for index, reading in enumerate(readings):
        average, peak, *busiest = reading
        values = {"given_cpus": float(cpus), "demand": average, "given_memory": 256.0 * MiB, **more}
        alone = busiest[0] if busiest else average / cpus
        row = Bucket(
            NOW - (len(readings) - index) * STEP_S,
            {**values, "busiest": alone},
            {**values, "demand": peak, "busiest": alone},
        )
        found.append(row)
    return found


def memory_rows(size: int, count: int = 60, peak: float | None = None, **values: float) -> list[Bucket]:
    average = {"given_cpus": 1.0, "demand": 0.1, "given_memory": float(size), **values}
    high = {**average, **({"working_set": peak} if peak is not None else {})}
    return [Bucket(NOW - (count - index) * STEP_S, average, high) for index in range(count)]


def evidence(rows: Sequence[Bucket], **fields: Any) -> Evidence:
    """Of a VM `web` with one hour of data wanted unless said otherwise. `spec`, `status` and `host` as
    dictionaries of what differs."""
    for row in rows:  # else the rule would never see it of a real VM
        assert row.average.keys() <= AVERAGES, row.average.keys() - AVERAGES
    spec = {"image": "tiny", "machine": {"type": "pc-q35-7.2"}, **fields.pop("spec", {})}
    cpus = round(rows[-1].average.get("given_cpus", 1)) if rows else 1
    size = round(rows[-1].average.get("given_memory", 256 * MiB)) if rows else 256 * MiB
    spec.setdefault("cpu", {"count": cpus})
    spec.setdefault("memory", {"size": size})
    status = InstanceStatus(
        state=State.RUNNING,
        epoch=1,
        cpus=cpus,
        cpus_max=8,
        accelerator="kvm",
        memory=MemoryNow(size=size, start=size, most=size),
    ).model_copy(update=fields.pop("status", {}))
    host = HostFacts(
        cpus=16, memory_bytes=64 * GiB, memory_available_bytes=32 * GiB, **fields.pop("host", {})
    )
    known: dict[str, Any] = {
        "now": NOW, "window_s": 86400.0, "min_data_s": 1800.0, "step_s": STEP_S, "vcpus": cpus, "host": host,
    }  # fmt: skip
    return Evidence(
        name="web",
        spec=InstanceSpec.model_validate(spec),
        status=status,
        buckets=tuple(rows),
        **{**known, **fields},
    )


def metrics(
    resident: int = 2 * GiB, huge: int | None = 0, numa: NumaMetrics | None = None
) -> InstanceMetrics:
    return InstanceMetrics(
        name="web", uid="u", state="running", accelerator="kvm", pid=1, at=NOW, cpu=CpuMetrics(given=1),
        memory=MemoryMetrics(given=resident, resident=resident, huge=huge), numa=numa,
    )  # fmt: skip


def node(number: int, cpus: tuple[int, ...], free_pages: int = 0) -> HostNode:
    return HostNode(
        id=number,
        cpus=cpus,
        memory_bytes=32 * GiB,
        distances=(10, 21) if number == 0 else (21, 10),
        hugepages=(HugePages(page_bytes=2 * MiB, total=free_pages, free=free_pages),),
    )


def trial(**fields: Any) -> Trial:
    known: dict[str, Any] = {
        "id": "0" * 16, "kind": "cpu", "reason": "idle", "what": "1 vCPU instead of 2", "epoch": 1,
        "change": {"cpu.count": 1}, "before": {"cpu.count": 2}, "state": TrialState.WATCHING,
        "started_at": NOW - 60, "changed_at": NOW - 60, "window_s": 60.0,
    }  # fmt: skip
    return Trial(**{**known, **fields})


def only(said: Sequence[Advice | Withheld]) -> Advice | Withheld:
    assert len(said) == 1, said
    return said[0]


def brief(one: Advice | Withheld) -> tuple[str, Any]:
    """What a table holds: the reason, and the change of advice."""
    return one.reason, one.change if isinstance(one, Advice) else None


def reasons(found: InstanceAdvice) -> list[str]:
    return [one.reason for one in found.advice]
