"""What of a VM's spec its copies get."""

from __future__ import annotations

from innkeeper.spec.instance import InstanceSpec


def spec_of_copy(spec: InstanceSpec) -> InstanceSpec:
    """The parent's, without what only one VM can have: its host ports and its MAC addresses."""
    networks = tuple(one.model_copy(update={"mac": "", "forward": ()}) for one in spec.networks)
    vnc = "socket" if spec.display.vnc else ""
    display = spec.display.model_copy(update={"vnc": vnc})
    return spec.model_copy(update={"networks": networks, "display": display})
