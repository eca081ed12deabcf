"""NUMA moves that would pay: memory on one node, vCPUs on others, and room for them where it is. Pure.

vCPUs follow the memory, since that can be done while the VM runs and costs nothing; memory cannot be moved
live here.
"""

from __future__ import annotations

from innkeeper.control.advice import thresholds as T
from innkeeper.control.advice.evidence import Evidence, Said, advised, percent
from innkeeper.spec.advice import Withheld
from innkeeper.spec.host import HostNode
from innkeeper.units import human_size


def numa(evidence: Evidence) -> Said:
    seen, host = evidence.seen, evidence.host
    if host is None or len([node for node in host.numa if node.cpus]) < 2:
        return []
    if seen is None or seen.numa is None:
        return [Withheld(kind="numa", reason="unknown", what="where its memory lies is not known yet")]
    local, total = seen.numa.local, sum(seen.numa.nodes.values())
    said = f"{percent(local)} of {human_size(total)} on the nodes where its vCPUs run"
    if local >= T.LOCAL or (1 - local) * total < T.REMOTE_BYTES:
        return [Withheld(kind="numa", reason="fits", what=said)]
    if evidence.spec.cpu.is_pinned or evidence.spec.numa != "none":
        return [
            Withheld(kind="numa", reason="host", what=f"{said}; but it is placed by hand (cpu.pin, numa)")
        ]
    if tried := evidence.tried("numa", "remote"):
        return [tried]
    nodes = {node.id: node for node in host.numa}
    best = max(seen.numa.nodes, key=lambda node: seen.numa.nodes[node] if seen.numa else 0)
    node, share = nodes.get(best), seen.numa.nodes[best] / total
    if node is None or share < T.LOCAL:
        return [Withheld(kind="numa", reason="host", what=f"{said}; no node has {percent(T.LOCAL)} of it")]
    usable = [cpu for cpu in node.cpus if not host.cpu_ids or cpu in host.cpu_ids]
    cpus = evidence.status.cpus
    if len(usable) < cpus:
        what = f"{said}; node {best} has {percent(share)}, but {len(usable)} CPUs for its {cpus} vCPUs"
        return [Withheld(kind="numa", reason="capacity", what=what)]
    return [
        advised(
            evidence,
            "numa",
            "remote",
            {"cpu.pin": {str(number): ranges(usable) for number in range(cpus)}},
            what=f"its vCPUs to node {best}, where its memory is",
            seen=said,
            effect=f"{percent(share)} of its memory local; {_farther(node, host.numa)}, and it gets CPUs of "
            "that node only",
        )
    ]


def _farther(node: HostNode, nodes: tuple[HostNode, ...]) -> str:
    """SLIT distances: 10 is local (ACPI 6.4, 5.2.17)."""
    if len(node.distances) != len(nodes):
        return "remote memory is slower"
    farthest = max(node.distances)
    return f"remote memory is up to {farthest / 10:g} times as far"


def ranges(cpus: list[int]) -> str:
    """`0-3,8` of 0, 1, 2, 3, 8."""
    found: list[list[int]] = []
    for cpu in sorted(cpus):
        if found and cpu == found[-1][1] + 1:
            found[-1][1] = cpu
        else:
            found.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in found)
