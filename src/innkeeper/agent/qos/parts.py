"""What a VM's quality of service consists of: each part says what the control groups of all VMs should have.

A part is a function over everything that runs or is about to: uid -> settings, () for one that needs
none, or why there can be none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from innkeeper.agent.context import Context
from innkeeper.agent.qos import cpu, disk, memory
from innkeeper.drivers.cgroupvalues import Setting

Decide = Callable[[Context], Mapping[str, Sequence[Setting] | str]]
PARTS: Final[dict[str, Decide]] = {"cpu": cpu.decide, "memory": memory.decide, "disk": disk.decide}
