"""Network facilities of the kernel: taps, bridges, packet filter, vhost. Each is used once."""

from __future__ import annotations

import errno
import os

from innkeeper.agent import probes
from innkeeper.agent.doctor.base import DoctorContext, Finding, Verdict, check
from innkeeper.agent.doctor.checks_cpu import modules_loadable

_AS_USER = "networks of VMs use passt instead"


def _temporary_name(kind: str) -> str:
    """An interface name of at most 15 characters that only this process uses."""
    return f"inn{kind}{os.getpid() % 10_000_000}"


@check("tun")
def check_tun(context: DoctorContext) -> Finding:
    device = str(context.path("dev/net/tun"))
    try:
        probes.try_tap(_temporary_name("t"), device)
    except FileNotFoundError:
        repair = f"mkdir -p {os.path.dirname(device)} && mknod -m 0666 {device} c 10 200"
        level: Verdict = "warn" if context.privileged else "info"
        return Finding("tun", level, f"there is no {device}: no taps", repair, fixable=True)
    except PermissionError:
        return Finding(
            "tun",
            "info",
            f"making a tap needs root (CAP_NET_ADMIN); {_AS_USER}",
            "sudo inn serve" if not context.privileged else "",
        )
    except OSError as error:
        return Finding(
            "tun",
            "warn",
            f"no tap can be made: {error.strerror}",
            "modprobe tun",
            fixable=error.errno in (errno.ENODEV, errno.ENXIO) and modules_loadable(context),
        )
    return Finding("tun", "ok", "a tap was made and removed")


@check("bridge")
def check_bridge(context: DoctorContext) -> Finding:
    name = _temporary_name("b")
    try:
        probes.add_bridge(name)
    except PermissionError:
        return Finding(
            "bridge",
            "info",
            f"making a bridge needs root (CAP_NET_ADMIN); {_AS_USER}",
            "sudo inn serve" if not context.privileged else "",
        )
    except OSError as error:
        return Finding(
            "bridge",
            "warn",
            f"no bridge can be made: {error.strerror}",
            "modprobe bridge",
            fixable=modules_loadable(context),
        )
    probes.delete_bridge(name)
    return Finding("bridge", "ok", "a bridge was made and removed")


@check("nftables")
def check_nftables(context: DoctorContext) -> Finding:
    """Asks the kernel over netlink; whether the program `nft` is here is `network-tools`."""
    try:
        generation = probes.nf_tables_generation()
    except PermissionError:
        return Finding("nftables", "info", f"asking needs root (CAP_NET_ADMIN); {_AS_USER}")
    except OSError as error:
        return Finding(
            "nftables",
            "warn",
            f"the kernel has no nf_tables ({error.strerror or 'no answer'}): no NAT, no filters",
            "modprobe nf_tables",
            fixable=modules_loadable(context),
        )
    return Finding("nftables", "ok", f"nf_tables answers (rule set generation {generation})")


@check("vhost-net")
def check_vhost_net(context: DoctorContext) -> Finding:
    device = str(context.path("dev/vhost-net"))
    loadable = modules_loadable(context)
    try:
        features = probes.vhost_features(device)
    except PermissionError:
        return Finding("vhost-net", "info", f"{device} is not open to you; {_AS_USER}")
    except OSError as error:
        return Finding(
            "vhost-net",
            "info",
            f"not there ({error.strerror}): QEMU moves the packets of taps itself",
            "modprobe vhost_net" if loadable else "",
            fixable=loadable,
        )
    return Finding("vhost-net", "ok", f"answers, feature bits {features:#x}")
