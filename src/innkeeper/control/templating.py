"""Which template an instance that is asked for can start from. Pure.

A copy has the devices, the memory and the guest of its template. What a spec says beyond that, or what leads
to the VM from outside, is its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from innkeeper.spec.copying import spec_of_copy
from innkeeper.spec.differences import differences
from innkeeper.spec.instance import InstanceRecord, InstanceSpec, Network
from innkeeper.spec.qos import CpuQos
from innkeeper.store.view import InstanceView

# What a copy may have otherwise: of the spec itself, and of each network.
OWN: Final = ("restart_policy", "labels", "wait_for_agent")
OWN_OF_NETWORK: Final = ("forward",)


def unlike(template: InstanceRecord, spec: InstanceSpec) -> list[str]:
    """The settings, such as `memory.size`, in which `spec` differs from what a copy would be."""
    like = spec_of_copy(template.spec)
    return differences(_common(like), _common(_with_pin(spec, like)))


def behind_image(spec: InstanceSpec, image_id: str, views: Iterable[InstanceView]) -> InstanceView | None:
    """The template that serves the image and is like `spec`; of several the one with most spares, by name
    among equals."""
    fitting = [
        view
        for view in views
        if view.status.template
        and view.record.image_id == image_id
        and view.record.wanted.template is not None
        and view.record.wanted.template.serves_image
        and not view.record.wanted.removed
        and not unlike(view.record, spec)
    ]
    return min(fitting, key=lambda view: (-view.status.spares, view.name), default=None)


def _common(spec: InstanceSpec) -> InstanceSpec:
    plain = {name: Network.model_fields[name].default for name in OWN_OF_NETWORK}
    update: dict[str, Any] = {
        name: InstanceSpec.model_fields[name].get_default(call_default_factory=True) for name in OWN
    }
    # Of the rest of its QoS the devices know.
    update["qos"] = spec.qos.model_copy(update={"cpu": CpuQos()})
    update["networks"] = tuple(one.model_copy(update=plain) for one in spec.networks)
    return spec.model_copy(update=update)


def _with_pin(spec: InstanceSpec, like: InstanceSpec) -> InstanceSpec:
    """An alias such as q35 means the version that the template has."""
    stem = {"q35": "pc-q35-", "pc": "pc-i440fx-"}.get(spec.machine.type)
    if stem is None or not like.machine.type.startswith(stem):
        return spec
    return spec.model_copy(update={"machine": spec.machine.model_copy(update={"type": like.machine.type})})
