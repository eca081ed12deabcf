"""Placement and admission: what fits, what does not, and what the user is told."""

from __future__ import annotations

import random
from typing import Any

import pytest
from api_harness import FACTS, HOST, TINY, record
from hypothesis import given
from hypothesis import strategies as st

from innkeeper.control.admission import fitted_to_image, open_claims
from innkeeper.control.placement import Claim, memory_needed, place
from innkeeper.errors import NoCapacity, Refused, SpecError, Unsupported
from innkeeper.spec.host import ForeignQemu, HostRecord
from innkeeper.spec.instance import Ended, InstanceSpec, InstanceStatus, Power, State
from innkeeper.store.view import InstanceView
from innkeeper.units import GiB, MiB

ARM = {
    "aarch64": ForeignQemu(
        qemu="/usr/bin/qemu-system-aarch64",
        qemu_version="7.2.0",
        machine_types=("virt-7.2",),
        machine_aliases={"virt": "virt-7.2"},
    )
}


def spec(**fields: Any) -> InstanceSpec:
    return InstanceSpec.model_validate({"image": "tiny", **fields})


def host(name: str = "h1", **facts: Any) -> HostRecord:
    return HOST.model_copy(update={"name": name, "facts": FACTS.model_copy(update=facts)})


@pytest.mark.parametrize(
    ("wanted", "facts", "machine", "accelerator"),
    [
        ({}, {}, "pc-q35-7.2", "tcg"),
        ({}, {"kvm": "hardware"}, "pc-q35-7.2", "kvm"),
        ({"machine": {"type": "pc"}}, {}, "pc-i440fx-7.2", "tcg"),
        ({"machine": {"type": "pc-q35-7.1"}}, {}, "pc-q35-7.1", "tcg"),
        ({"machine": {"accelerator": "tcg"}}, {"kvm": "hardware"}, "pc-q35-7.2", "tcg"),
        ({"machine": {"accelerator": "kvm"}}, {"kvm": "hardware"}, "pc-q35-7.2", "kvm"),
        ({"machine": {"architecture": "aarch64"}}, {"foreign": ARM, "kvm": "hardware"}, "virt-7.2", "tcg"),
    ],
)
def test_choices(wanted: Any, facts: Any, machine: str, accelerator: str) -> None:
    placed = place(spec(**wanted), [host(**facts)], [])
    assert (placed.host, placed.machine_type, placed.accelerator) == ("h1", machine, accelerator)


@pytest.mark.parametrize(
    ("wanted", "facts", "error", "told"),
    [
        (
            {"machine": {"accelerator": "kvm"}},
            {},
            Unsupported,
            "does not work on this host (emulated): 2 million",
        ),
        (
            {"machine": {"architecture": "aarch64"}},
            {},
            Unsupported,
            "QEMU for aarch64 guests is not installed; run as root: apt-get install --no-install-recommends"
            " qemu-system-arm",
        ),
        (
            {"machine": {"architecture": "aarch64", "accelerator": "kvm"}},
            {"foreign": ARM, "kvm": "hardware"},
            Unsupported,
            "guests of another architecture than the host's are emulated",
        ),
        (
            {"machine": {"architecture": "aarch64", "type": "q35"}},
            {"foreign": ARM},
            Unsupported,
            "has no machine type q35; choose one of: virt",
        ),
        ({"machine": {"type": "q34"}}, {}, Unsupported, "QEMU 7.2.0 has no machine type q34"),
        ({}, {"qemu": ""}, Unsupported, "QEMU is not installed; install it: inn doctor --fix"),
        ({"memory": {"size": "16GiB"}}, {}, NoCapacity, "the host has 8.0 GiB; give it less memory"),
        ({"memory": {"size": "6GiB"}}, {}, NoCapacity, "6.0 GiB is available; stop other instances"),
        ({}, {"disk_free_bytes": 5 * MiB}, NoCapacity, "only 5.0 MiB of disk space is free"),
    ],
)
def test_refusals(wanted: Any, facts: Any, error: type[Refused], told: str) -> None:
    with pytest.raises(error) as caught:
        place(spec(**wanted), [host(**facts)], [])
    assert told in str(caught.value)
    assert caught.value.details["hosts"]["h1"]


def test_what_is_not_to_run_yet_needs_no_room_now() -> None:
    full = host(memory_available_bytes=0, disk_free_bytes=0)
    assert place(spec(), [full], [], to_run=False).host == "h1"
    with pytest.raises(NoCapacity):
        place(spec(memory={"size": "9GiB"}), [full], [], to_run=False)


def test_without_a_host() -> None:
    with pytest.raises(NoCapacity, match="No host is there"):
        place(spec(), [], [])


def test_every_host_and_reason_is_listed_and_room_decides() -> None:
    hosts = [host("a", qemu=""), host("b", memory_available_bytes=MiB, disk_free_bytes=MiB)]
    with pytest.raises(NoCapacity) as caught:
        place(spec(), hosts, [])
    assert {name: len(found) for name, found in caught.value.details["hosts"].items()} == {"a": 1, "b": 2}
    assert "a: QEMU is not installed; b: it needs" in caught.value.message


SIZES = st.integers(1, 4096).map(lambda n: 16 * n * MiB)
HOSTS = st.lists(
    st.builds(
        lambda name, total, share: host(name, memory_bytes=total, memory_available_bytes=int(total * share)),
        st.sampled_from("abcdefgh"),
        SIZES,
        st.floats(0, 1),
    ),
    max_size=6,
    unique_by=lambda one: one.name,
)
CLAIMS = st.lists(st.builds(Claim, st.sampled_from("abcdefghx"), SIZES), max_size=8)


def left(one: HostRecord, claims: list[Claim]) -> int:
    taken = sum(claim.memory_bytes for claim in claims if claim.host == one.name)
    return one.facts.memory_available_bytes - taken


@given(SIZES, HOSTS, CLAIMS, st.randoms(use_true_random=False))
def test_properties(size: int, hosts: list[HostRecord], claims: list[Claim], order: random.Random) -> None:
    asked = spec(memory={"size": size})
    fits = [one for one in hosts if memory_needed(asked) <= min(left(one, claims), one.facts.memory_bytes)]
    try:
        chosen = place(asked, hosts, claims)
    except NoCapacity as error:
        # it explains: refused only when nothing fits, and with a reason for each host
        assert not fits
        assert set(error.details.get("hosts", {})) == {one.name for one in hosts}
        assert all(error.details.get("hosts", {}).values())
        return
    # it never exceeds what is there, and takes the emptiest
    assert chosen.host in [one.name for one in fits]
    assert max(left(one, claims) for one in fits) == left(
        next(one for one in hosts if one.name == chosen.host), claims
    )
    # it is stable: the order of what it is told does not matter
    order.shuffle(hosts)
    order.shuffle(claims)
    assert place(asked, hosts, claims) == chosen


@pytest.mark.parametrize(
    ("power", "status", "counts"),
    [
        (Power.OFF, InstanceStatus(state=State.STOPPED), False),
        (Power.ON, InstanceStatus(), True),
        (Power.ON, InstanceStatus(state=State.STARTING), True),
        (Power.ON, InstanceStatus(state=State.RUNNING, started_at=99.0), False),  # in the facts already
        (Power.ON, InstanceStatus(state=State.RUNNING, started_at=101.0), True),
        (Power.OFF, InstanceStatus(state=State.STOPPING, started_at=101.0), True),
        (Power.ON, InstanceStatus(state=State.STOPPED, ended=Ended(epoch=1, reason="x", at=1.0)), False),
    ],
)
def test_claims(power: Power, status: InstanceStatus, counts: bool) -> None:
    seen = HOST.model_copy(update={"observed_at": 100.0})
    view = InstanceView(record(power=power, epoch=1), status, 1)
    assert bool(open_claims([view], [seen])) is counts
    assert open_claims([view], [seen], but="web") == []


def test_memory_for_an_image() -> None:
    image = TINY.model_copy(update={"min_memory_bytes": GiB})
    assert fitted_to_image(spec(), image).memory.size == GiB
    assert fitted_to_image(spec(memory={"size": "2GiB"}), image).memory.size == 2 * GiB
    with pytest.raises(SpecError, match="use --memory 1GiB"):
        fitted_to_image(spec(memory={"size": "512MiB"}), image)
    with pytest.raises(SpecError, match="use --memory 1088MiB"):
        fitted_to_image(spec(memory={"size": "1GiB", "max": "2GiB"}), image)


def test_the_machine_follows_the_images_architecture() -> None:
    image = TINY.model_copy(update={"architecture": "aarch64"})
    machine = fitted_to_image(spec(machine={"accelerator": "tcg"}), image).machine
    assert (machine.architecture, machine.type, machine.accelerator) == ("aarch64", "virt", "tcg")
    assert fitted_to_image(spec(machine={"type": "virt-7.1"}), image).machine.type == "virt-7.1"
    assert fitted_to_image(spec(), TINY).machine.type == "q35"
    with pytest.raises(SpecError, match="is for aarch64, not for x86_64"):
        fitted_to_image(spec(machine={"architecture": "x86_64"}), image)
    with pytest.raises(SpecError, match="no UEFI firmware for aarch64"):
        fitted_to_image(spec(machine={"firmware": "uefi"}), image)
