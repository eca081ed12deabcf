"""The network cards of a running VM: their back-ends on the host, and what the guest says of them."""

from __future__ import annotations

import time
from collections.abc import Mapping

from innkeeper.agent.context import Running
from innkeeper.drivers import procfs
from innkeeper.engine.base import NicPlan
from innkeeper.engine.inspection import Inspection, Nic
from innkeeper.errors import InnkeeperError
from innkeeper.guest.interfaces import Interface, interfaces, link_state
from innkeeper.spec.inspection import GuestSide, NetInspection, NicReport


async def inspect_net(name: str, running: Running, vm: Inspection, *, why_no_agent: str) -> NetInspection:
    """Raises EngineError when QEMU does not answer. Of a guest whose agent cannot be asked, or does not
    answer, the host's side alone, and a note."""
    begun = time.monotonic()
    told = {one.name: one for one in await vm.nics()}
    sides, note = await _guest_sides(running) if not why_no_agent else ({}, why_no_agent)
    plans = running.plan.nics if running.plan else ()
    nics = [_nic(index, plan, told.get(f"net{index}"), sides) for index, plan in enumerate(plans)]
    if running.plan is None:
        note = "an older daemon started this VM and did not note its network cards; restart it to see them"
    took_ms = round((time.monotonic() - begun) * 1000, 2)
    return NetInspection(name=name, nics=nics, note=note, took_ms=took_ms)


async def _guest_sides(running: Running) -> tuple[dict[str, GuestSide], str]:
    """By MAC address; and what went wrong."""
    try:
        found = await interfaces(running.agent)
        return {one.mac.lower(): await _side(running, one) for one in found if one.mac}, ""
    except InnkeeperError as error:
        return {}, f"the guest's side is missing: {error.message}"


async def _side(running: Running, one: Interface) -> GuestSide:
    return GuestSide(
        interface=one.name,
        state=await link_state(running.agent, one.name),
        addresses=list(one.addresses),
        counters=one.counters,
    )


def _nic(index: int, plan: NicPlan, nic: Nic | None, sides: Mapping[str, GuestSide]) -> NicReport:
    told = nic.filter if nic else {}
    # Of a fork, the guest may still have the address its hardware was built with.
    macs = (str(told.get("main-mac", "")).lower(), plan.mac.lower(), plan.built_mac.lower())
    pid = nic.backend_pid if nic else None
    return NicReport(
        name=f"net{index}",
        model=plan.model,
        mac=macs[0] or plan.mac,
        backend=plan.backend,
        backend_pid=pid,
        backend_alive=None if pid is None else _is_passt(pid),
        connected=nic.connected if nic else None,
        waiting_bytes=nic.waiting_bytes if nic else None,
        host_access=plan.host_access,
        forwards=[
            {"protocol": protocol, "host": host, "host_port": host_port, "guest_port": guest_port}
            for protocol, host, host_port, guest_port in plan.forwards
        ],
        promiscuous=bool(told["promiscuous"]) if "promiscuous" in told else None,
        multicast=list(told.get("multicast-table", [])),
        guest=next((sides[mac] for mac in macs if mac in sides), None),
    )


def _is_passt(pid: int) -> bool:
    argv = procfs.command_line(pid)
    return bool(argv) and argv[0].rpartition("/")[2].startswith("passt")
