"""The guest's own view of memory that comes and goes, through the agent.

Linux has memory in blocks (Documentation/admin-guide/mm/memory-hotplug.rst): new ones are brought online,
into a zone of the kernel's own data or into one of movable pages only, and can be taken offline again as
long as all in them can be moved away.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from typing import Final

from innkeeper.errors import Failed, Unsupported
from innkeeper.guest.agent import GuestAgent
from innkeeper.guest.script import run_script

_LOOK_S: Final = 0.1
BLOCKS_DIRECTORY: Final = "/sys/devices/system/memory"
POLICY_FILE: Final = "/sys/module/memory_hotplug/parameters/online_policy"
# A kernel that brings new memory online by itself does so as its own, and what lies there then never moves.
# Movable all of it must not be either: tables and descriptors of pages need kernel memory. Linux 5.15 and
# later keep the balance themselves (auto-movable: three times what it was started with); older ones are told
# to take all as movable. What an administrator chose (online_kernel, online_movable) stays.
PREPARE: Final = f"""
cd {BLOCKS_DIRECTORY} || exit 3
read -r auto <auto_online_blocks || exit 3
case $auto in online|offline)
  if [ -e {POLICY_FILE} ]; then echo auto-movable >{POLICY_FILE}
  elif [ "$auto" = online ]; then echo online_movable >auto_online_blocks
  fi
esac
"""
# Arguments: pairs of address and size. Says how many bytes of them are online.
ONLINE: Final = f"""
cd {BLOCKS_DIRECTORY} || exit 3
read -r size <block_size_bytes || exit 3
size=$((0x$size)); on=0; how=online_movable
[ -e {POLICY_FILE} ] && read -r policy <{POLICY_FILE} && [ "$policy" = auto-movable ] && how=online
while [ $# -gt 1 ]; do
  n=$(($1 / size)); end=$((($1 + $2) / size)); shift 2
  while [ $n -lt $end ]; do
    block=memory$n; n=$((n + 1))
    [ -d $block ] || continue
    read -r state <$block/state
    if [ "$state" = offline ]; then
      (echo $how >$block/state || echo online >$block/state) 2>/dev/null
      read -r state <$block/state
    fi
    [ "$state" = online ] && on=$((on + size))
  done
done
echo $on
"""
# Arguments: seconds, address, size. The kernel tries to move pages away until a signal stops it: one that is
# in use for long would keep it trying for ever.
OFFLINE: Final = f"""
cd {BLOCKS_DIRECTORY} || exit 3
read -r size <block_size_bytes || exit 3
size=$((0x$size)); first=$(($2 / size)); end=$((($2 + $3) / size))
(
  n=$first
  while [ $n -lt $end ]; do
    if [ -d memory$n ]; then
      read -r state <memory$n/state
      [ "$state" = offline ] || echo offline >memory$n/state || exit 1
    fi
    n=$((n + 1))
  done
) >/dev/null 2>&1 &
worker=$!
(sleep $1; kill $worker) >/dev/null 2>&1 &
watcher=$!
wait $worker
kill $watcher 2>/dev/null
n=$first
while [ $n -lt $end ]; do
  if [ -d memory$n ]; then
    state=; read -r state <memory$n/state
    if [ "$state" != offline ]; then echo kept; exit 0; fi
  fi
  n=$((n + 1))
done
echo given
"""
Range = tuple[int, int]  # address and size in the guest's memory


async def prepare(agent: GuestAgent) -> None:
    """Before memory is plugged: have the guest bring it online so that it can be emptied again. Raises what
    every agent command raises, and Unsupported where the guest has no such thing."""
    await _told(agent, PREPARE)


async def bring_online(agent: GuestAgent, ranges: Sequence[Range], deadline_s: float) -> int:
    """Have the guest use memory, once it has noticed it; how many bytes of it are in use by the deadline.
    Raises as `prepare`."""
    wanted, online = sum(size for _, size in ranges), 0
    places = [str(number) for one in ranges for number in one]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(deadline_s):
            while True:
                online = _number(await _told(agent, ONLINE, *places))
                if online >= wanted:
                    return online
                await asyncio.sleep(_LOOK_S)
    return online


async def take_offline(agent: GuestAgent, place: Range, seconds: int) -> bool:
    """Have the guest empty this memory and use it no more; whether it could within `seconds`. Where it could
    not, parts of it may be offline (`bring_online`). Raises as `prepare`."""
    return await _told(agent, OFFLINE, str(seconds), *map(str, place)) == "given"


async def available_bytes(agent: GuestAgent) -> int:
    """What the guest can give up without killing what runs in it (/proc/meminfo, MemAvailable). Raises as
    `prepare`."""
    text = await _told(agent, "cat /proc/meminfo")
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.M)
    if found is None:
        raise _nothing_of_the_kind()
    return int(found.group(1)) * 1024


async def _told(agent: GuestAgent, script: str, *args: str) -> str:
    status = await run_script(agent, script, *args)
    if status is None or status.status == 3:
        raise _nothing_of_the_kind()
    return status.stdout.decode(errors="replace").strip()


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise Failed("the guest's answer on its memory blocks makes no sense") from None


def _nothing_of_the_kind() -> Unsupported:
    return Unsupported(
        "the guest does not say what its memory does: no Linux, no shell, or a kernel without memory hotplug"
    )
