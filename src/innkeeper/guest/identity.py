"""A fork learns who it is.

In memory it is its parent, down to the pool of its random generator. The device that tells it so is
vmgenid; kernels before 5.18 and most programs do not listen to it, so the rest is done here, through
the agent, in one script: host name, machine-id, MAC addresses with new leases, random seed, host keys.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Final

from innkeeper.errors import AgentMissing, Failed, GuestTimeout, Unsupported
from innkeeper.guest.agent import GuestAgent
from innkeeper.guest.channel import printable
from innkeeper.guest.script import run_script

# What is written to /dev/urandom counts from the kernel's next reseeding on, up to a minute later, so that is
# asked for (images/reseed.py): by our own program, or whatever can do an ioctl. A kernel with vmgenid has
# done it.
_RESEED: Final = r"""
echo "$seed" >/dev/urandom
/lib/inn/reseed 2>/dev/null ||
    perl -e 'open(my $f, "<", "/dev/urandom") && ioctl($f, 0x5207, 0) or exit 1' 2>/dev/null ||
    python3 -c 'import fcntl; fcntl.ioctl(open("/dev/urandom"), 0x5207)' 2>/dev/null ||
    [ -e /sys/bus/acpi/drivers/vmgenid ] || failed="$failed random-numbers"
"""
# Words: $1 host name, $2 machine-id, $3 random seed, $4 "yes" for new SSH host keys, $5 the time, $6 the next
# whole second and $7 how long until then, then OLD=NEW MACs.
# Each part stands alone: a guest that lacks a program still gets the rest; what fails is named at the end.
# Builtins wherever there are some: each process costs an emulated guest milliseconds.
SCRIPT: Final = (
    r"""
name=$1 id=$2 seed=$3 keys=$4 now=$5 whole=$6 wait=$7; shift 7; failed= leases= was=
routes() { n=0; while read -r iface rest; do [ "$iface" != "$1" ] || n=$((n + 1)); done </proc/net/route; }
# Where date is a link to busybox it takes whole seconds only: the clock is set when the next one begins.
# Nothing of that may keep our output open, or the agent would wait for it: hence exec, since a redirected
# group keeps a copy.
if [ -L /bin/date ]; then (exec </dev/null >/dev/null 2>&1; sleep "$wait"; date -u -s "@$whole") &
else date -u -s "@$now" >/dev/null 2>&1 || failed="$failed clock"; fi
"""
    + _RESEED
    + r"""
read -r old </proc/sys/kernel/hostname
echo "$name" >/proc/sys/kernel/hostname || failed="$failed host-name"
[ ! -f /etc/hostname ] || echo "$name" >/etc/hostname
if [ -n "$old" ] && [ -w /etc/hosts ]; then
    while read -r line; do
        case $line in *"$old"*) sed -i "s/\b$old\b/$name/g" /etc/hosts 2>/dev/null; break ;; esac
    done </etc/hosts
fi
if [ -e /etc/machine-id ]; then
    read -r was </etc/machine-id
    echo "$id" >/etc/machine-id || failed="$failed machine-id"
fi
for pair; do
    for device in /sys/class/net/*; do
        read -r address <"$device/address" && [ "$address" = "${pair%%=*}" ] || continue
        nic=${device##*/}
        read -r lease <"$device/ifindex" && lease=/run/systemd/netif/leases/$lease
        # networkd asks for a new lease by itself when the address changes; told to as well (networkctl
        # reconfigure) while it is at it, that of systemd 252 ends without any address, for good.
        [ ! -s "$lease" ] || { routes "$nic"; leases="$leases $lease=$nic=$n"; : >"$lease"; }
        ip link set dev "$nic" address "${pair#*=}" 2>/dev/null || {
            ip link set dev "$nic" down && ip link set dev "$nic" address "${pair#*=}"
            ip link set dev "$nic" up
        } || failed="$failed mac:$nic"
        if [ -d /run/systemd/netif/leases ]; then :
        elif [ -f "/run/udhcpc.$nic.pid" ]; then read -r dhcp <"/run/udhcpc.$nic.pid"; kill -USR1 "$dhcp"
        elif command -v dhclient >/dev/null; then dhclient -nw "$nic" >/dev/null 2>&1 &
        fi
    done
done
if [ "$keys" = yes ] && command -v ssh-keygen >/dev/null; then
    # Of the kinds it has, no other: an RSA key takes an emulated guest some ten seconds.
    for file in /etc/ssh/ssh_host_*_key; do
        [ -f "$file" ] || continue
        kind=${file#/etc/ssh/ssh_host_}
        rm -f "$file" "$file.pub"
        ssh-keygen -q -t "${kind%_key}" -N "" -f "$file" </dev/null >/dev/null || failed="$failed ssh-keys"
    done
    systemctl try-restart ssh sshd 2>/dev/null
fi
# networkd takes the address away first: it is back when there is a lease again, and as many routes.
for one in $leases; do
    lease=${one%%=*} nic=${one#*=} had=${one##*=} nic=${nic%=*} turns=0
    while routes "$nic"; [ ! -s "$lease" ] || [ "$n" -lt "$had" ]; do
        turns=$((turns + 1))
        if [ $turns -gt 50 ]; then [ -s "$lease" ] || failed="$failed lease:$nic"; break; fi
        sleep 0.1
    done
done
# The log goes on where it is, but is looked for under the machine-id.
if [ -n "$was" ] && [ -d "/var/log/journal/$was" ] && [ ! -e "/var/log/journal/$id" ]; then
    ln -s "$was" "/var/log/journal/$id" >/dev/null 2>&1 &
fi
[ -z "$failed" ] || { echo "$failed" >&2; exit 1; }
"""
)
_WAKE: Final = "seed=$3" + _RESEED + r"""date -u -s "@$1" || date -u -s "@$2" """
# From asking for the script to its first line, in an emulated guest.
_SCRIPT_BEGINS_S: Final = 0.02


def machine_id(uid: str) -> str:
    """machine-id(5) wants 32 hex digits; the same instance always gets the same."""
    return hashlib.sha256(f"machine-id/{uid}".encode()).hexdigest()[:32]


async def assume(
    agent: GuestAgent,
    *,
    name: str,
    uid: str,
    macs: Sequence[tuple[str, str]],
    now: Callable[[], float],
    ssh_keys: bool = False,
) -> None:
    """Make the guest behind `agent` the instance `name`; `macs` are pairs of old and new, `now` tells the
    host's time. Raises Failed naming what could not be changed, and what every agent command raises.
    """
    time = now()
    whole = math.ceil(time + _SCRIPT_BEGINS_S)
    clock = [f"{time:.3f}", str(whole), f"{whole - time:.3f}"]
    pairs = [f"{old}={new}" for old, new in macs if old != new]
    words = [name, machine_id(uid), secrets.token_hex(32), "yes" if ssh_keys else "", *clock, *pairs]
    ended = await run_script(agent, SCRIPT, *words)
    if ended is None:
        raise Failed("The guest has no shell: its name, addresses and machine-id are its parent's")
    if ended.status != 0:
        what = printable(ended.stderr.decode(errors="replace").strip())
        raise Failed(f"The guest could not change its {what}")


async def catch_up(agent: GuestAgent, now: Callable[[], float]) -> None:
    """Give the guest the host's time, and other random numbers than it was about to draw, where that can be
    done: what has run on from a moment in the past must not go on believing in that moment. In a guest
    whose date knows whole seconds only it is half a second off at most."""
    time = now()
    words = [f"{time + _SCRIPT_BEGINS_S:.3f}", str(round(time)), secrets.token_hex(32)]
    with contextlib.suppress(Failed, GuestTimeout, AgentMissing):
        ended = await run_script(agent, _WAKE, *words)
        if ended is not None and ended.status == 0:
            return
    # The agent itself waits up to a second for the hardware clock, and fails where the guest has no hwclock
    # to store the time with; it is set then all the same.
    with contextlib.suppress(Failed, Unsupported):
        await agent.set_time(int(now() * 1e9))
