"""Which files of a guest changed: a list of all files before, one afterwards, and only the differences sent.

The first list is made once, in the VM that is forked, and lies in its memory (/dev/shm): every copy has
it, too, and compares its own files with it inside the guest. A list of 15,000 files is 1.6 MB; what
differs is a few lines. Names with line breaks are left out. Mode, owner, size, inode and both times (in
nanoseconds) count; nobody can set a file's ctime, so a change that puts all the rest back is seen, too.

Between the list and the command other programs write, and a fork gets its host name, its machine-id and
the right time. That is not the command's doing. Files that have the identity are looked at again right
before the command (`IDENTITY`); all others do not count with a ctime from the list's up to the command's
(`begin`, `mark`). Files that another program removed in that time show as removed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from innkeeper.errors import Failed

# Some 100 bytes of the guest's memory each, twice while they are compared.
MAX_FILES: Final = 300_000
MAX_CHANGES: Final = 10_000

# Mode (hex, with the type), uid, gid, size, inode, mtime; ctime; path.
_LINE: Final = "%f %u %g %s %i %y|%z|%n"

# Every file system on a disk, the root whatever it is on, and those in memory that are not the system's
# own. `find` and `stat` of busybox and coreutils agree on what is used here.
_WALK: Final = rf"""
export LC_ALL=C TZ=UTC0
umask 077
nl='
'
walk() {{
  seen=' '
  while read -r device directory type rest; do
    case $directory in /proc|/proc/*|/sys|/sys/*|/dev|/dev/*|/run|/run/*) continue;; esac
    case $device:$type:$directory in
      /dev/*|*:tmpfs:*|*:ramfs:*|*:zfs:*|*:/) ;;
      *) continue;;
    esac
    directory=$(printf %b "$directory")
    number=$(stat -c %d "$directory") || continue
    case $seen in *" $number "*) continue;; esac
    seen="$seen$number "
    find "$directory" -xdev ! -name "*$nl*" ! -path '/tmp/innkeeper-*' \
      -exec stat -c '{_LINE}' {{}} +
  done </proc/mounts 2>/dev/null | head -n {MAX_FILES}
}}
"""

# $1 token. Prints where the list is.
LIST: Final = (
    _WALK
    + r"""
for place in /dev/shm /run /tmp; do
  list=$place/innkeeper-try.$1
  true 2>/dev/null >"$list.begin" && break
done
walk >"$list" && [ -s "$list" ] && echo "$list"
"""
)

# What a fork changes in its guest (guest/identity.py), at a time that may not fit: it sets the clock, too.
IDENTITY: Final = (
    "/etc/hostname /etc/hosts /etc/machine-id /etc/resolv.conf /var/lib/dbus/machine-id /etc/ssh/ssh_host_*"
)

# As argv0 the place of the mark, then the command.
RUN: Final = f'LC_ALL=C TZ=UTC0 stat -c \'{_LINE}\' {IDENTITY} 2>/dev/null >"$0"; exec "$@"'

# $1 the list. Prints begin|mark|files before|files now, then lines that were right before the command (=),
# that are no longer (-) or only now (+).
COMPARE: Final = (
    _WALK
    + rf"""
begin=$(stat -c %z "$1.begin") && mark=$(stat -c %z "$1.mark") && walk >"$1.now" || exit
echo "$begin|$mark|$(wc -l <"$1")|$(wc -l <"$1.now")"
sed 's/^/=/' "$1.mark"
awk -v before="$1" '
  FILENAME == before {{ old[$0]; next }}
  $0 in old {{ old[$0] = 1; next }}
  {{ print "+" $0 }}
  END {{ for (line in old) if (!old[line]) print "-" line }}
' "$1" "$1.now" | head -n {2 * MAX_CHANGES}
rm -f "$1" "$1.begin" "$1.mark" "$1.now"
"""
)

# $1 the list.
FORGET: Final = 'rm -f "$1" "$1.begin" "$1.mark" "$1.now"'

_DIRECTORY: Final = 0o040000
_TYPE: Final = 0o170000


@dataclass(frozen=True, slots=True)
class Changes:
    """Paths in the guest, sorted. A directory counts as changed by its mode or owner only: what came
    into it or went is named itself. `truncated`: there is more than was looked at or listed."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    truncated: bool = False

    @property
    def count(self) -> int:
        return len(self.added) + len(self.changed) + len(self.removed)


@dataclass(frozen=True, slots=True)
class _File:
    mode: int
    owner: str  # uid and gid
    ctime: str
    path: str
    line: str  # all there is to compare

    @property
    def is_directory(self) -> bool:
        return self.mode & _TYPE == _DIRECTORY


@dataclass(slots=True)
class _Sides:
    before: dict[str, _File] = field(default_factory=dict)
    mark: dict[str, _File] = field(default_factory=dict)
    after: dict[str, _File] = field(default_factory=dict)


def parse(output: bytes) -> Changes:
    """What COMPARE printed. Raises Failed when that is not its output."""
    lines = output.decode(errors="replace").split("\n")
    try:
        begin, mark, before, after = lines[0].split("|")
        truncated = max(int(before), int(after)) >= MAX_FILES
        sides = _read(line for line in lines[1:] if line)
    except (ValueError, KeyError):
        raise Failed("The guest did not list its files", hint="leave that out: --no-changes") from None
    if len(sides.before) + len(sides.after) >= 2 * MAX_CHANGES:
        truncated = True
    return _classify(sides, begin, mark, truncated)


def _read(lines: Iterable[str]) -> _Sides:
    sides = _Sides()
    for line in lines:
        numbers, ctime, path = line[1:].split("|", 2)
        mode, uid, gid, _ = numbers.split(" ", 3)
        side = {"-": sides.before, "=": sides.mark, "+": sides.after}[line[0]]
        side[path] = _File(int(mode, 16), f"{uid}:{gid}", ctime, path, line[1:])
    return sides


def _classify(sides: _Sides, begin: str, mark: str, truncated: bool) -> Changes:
    added: list[str] = []
    changed: list[str] = []
    for path, now in sides.after.items():
        known = sides.mark.get(path)
        if begin <= now.ctime < mark or (known and known.line == now.line):
            continue  # before the command began
        before = known or sides.before.get(path)
        if before is None:
            added.append(path)
        elif not (now.is_directory and (before.mode, before.owner) == (now.mode, now.owner)):
            changed.append(path)
    # Of a list that was cut off, what is missing may only have moved out of it.
    removed = [] if truncated else [path for path in sides.before if path not in sides.after]
    return Changes(
        tuple(sorted(added)[:MAX_CHANGES]),
        tuple(sorted(changed)[:MAX_CHANGES]),
        tuple(sorted(removed)[:MAX_CHANGES]),
        truncated=truncated,
    )
