"""User-mode networking: outbound through the host's own sockets, no root and no set-up.

passt (https://passt.top) is preferred: its sockets live outside QEMU, and it is confined itself.
Where it is missing, QEMU's built-in slirp does, slower. passt gets one end of a connected pair and
ends by itself when the other end, QEMU's, closes.

Both lead what a guest sends to its gateway to the host's loopback, where programs trust whoever
connects. passt is told not to, unless the guest is to have that; slirp cannot be told by QEMU.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from innkeeper.drivers.run import Owner, Runner, which
from innkeeper.errors import Refused

Forward = tuple[str, str, int, int]  # protocol, host address, host port, guest port

# Where a resolver on the loopback says whom it asks itself (systemd-resolved(8), NetworkManager.conf(5)).
_UPSTREAM_FILES: Final = ("run/systemd/resolve/resolv.conf", "run/NetworkManager/no-stub-resolv.conf")
_MAX_NAME_SERVERS: Final = 3  # resolv.conf(5), MAXNS; passt refuses more than it has room for
# Link-local, so that nothing on the host's network is shadowed by it.
_DNS_ADDRESS: Final = "169.254.1.1"
_HELP_DEADLINE_S: Final = 5.0
# In versions with this option an answer finds its way to a forwarded port without the mapping, too.
_TRACKS_UDP: Final = b"--map-host-loopback"


def available_backend() -> Literal["passt", "slirp"]:
    return "passt" if which("passt") else "slirp"


def passt_argv(
    fd: int,
    forwards: Sequence[Forward],
    owner: Owner | None,
    *,
    host_access: bool = False,
    root: Path = Path("/"),
) -> list[str]:
    """passt(1): -f stay in the foreground, -q quiet, -F use this connected socket, -t/-u forward
    ports (none unless asked for); as root it becomes the VM's own user."""
    argv = ["passt", "--foreground", "--quiet", "--stderr", "--fd", str(fd)]
    if not host_access:
        argv += ["--no-map-gw", *_name_server_options(root)]
    if owner:
        argv += ["--runas", f"{owner.uid}:{owner.gid}"]
    for option, protocol in (("-t", "tcp"), ("-u", "udp")):
        wanted = [forward for forward in forwards if forward[0] == protocol]
        for _, address, host, guest in wanted:
            argv += [option, f"{address}/{host}:{guest}"]
        if not wanted:
            argv += [option, "none"]
    return argv


def _name_server_options(root: Path) -> list[str]:
    """For a host whose name servers are all on its loopback: the guest is told of those they ask, or
    of an address where passt passes questions on to them (passt of 2023 does so without telling)."""
    own = _name_servers(root / "etc/resolv.conf")
    if not own or not all(address.is_loopback for address in own):
        return []
    for file in _UPSTREAM_FILES:
        reachable = [one for one in _name_servers(root / file) if not (one.is_loopback or one.is_link_local)]
        if reachable:
            return [word for one in reachable[:_MAX_NAME_SERVERS] for word in ("--dns", str(one))]
    return ["--dns-forward", _DNS_ADDRESS]


def _name_servers(file: Path) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Those of a resolv.conf(5); none if there is no such file."""
    found = []
    with contextlib.suppress(OSError):
        for line in file.read_text(errors="replace").splitlines():
            keyword, _, value = line.partition(" ")
            if keyword == "nameserver":
                with contextlib.suppress(ValueError):
                    found.append(ipaddress.ip_address(value.strip()))
    return found


async def check_udp_answers(runner: Runner, forwards: Sequence[Forward]) -> None:
    """Raises Refused when answers from a forwarded UDP port would be lost: a passt of before August
    2024 sees them as sent to the gateway, and with --no-map-gw sends them there."""
    if all(protocol != "udp" for protocol, _, _, _ in forwards):
        return
    told = await runner.run(["passt", "--help"], deadline_s=_HELP_DEADLINE_S, check=False)
    if _TRACKS_UDP not in told.stdout + told.stderr:
        raise Refused(
            "This version of passt forwards UDP ports only if the guest may reach the host's loopback",
            hint="allow that with --network user,host_access=on, or install a passt of 2024-08 or later",
        )


def check_ports_free(forwards: Sequence[Forward]) -> None:
    """Raises Refused when a host port to forward is taken; passt itself would only say so in its log."""
    for protocol, address, host, _ in forwards:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        with contextlib.closing(socket.socket(family, kind)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, host))
            except OSError as error:
                raise Refused(
                    f"Cannot forward {protocol} port {host} of {address}: {error.strerror}",
                    hint="choose another host port",
                ) from error
