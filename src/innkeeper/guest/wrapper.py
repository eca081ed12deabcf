"""The shell scripts that `exec` runs in the guest: POSIX sh, for dash, bash and busybox alike.

How a command's output comes out while it runs (why so: see `exec`):

    feed | ( exec "$@" ) | pump o        stdout
                         | pump e        stderr

A *pump* copies its pipe into segment files PREFIX.o.0, PREFIX.o.1, ... with `dd`, which writes out each
read at once; the host tails them with guest-file-read. A segment ends after READS reads, so it has at
most SEGMENT_BYTES. With WINDOW segments filled, the pump waits until the host has acknowledged the
oldest (one line into the FIFO PREFIX.o.a) and removes it: the guest never stores more than WINDOW
segments per stream, and a slow reader slows the command down through its pipe. At the end the pump
writes the number of the oldest segment it still has, a newline, and all that is left to its own stdout,
which the agent captures: the answer of guest-exec-status that tells the end brings the rest of the
output with it, and a short command needs no file access at all.

The *feed* is the other way round: the host writes PREFIX.i.N and then the line N into the FIFO PREFIX.c;
the feed copies that file into the command's stdin and removes it. The line `e` is the end of stdin.

The host runs the wrapper with `setsid`: process id, group and session are one number, and ending the
session ends the command, what it started, and the plumbing.
"""

from __future__ import annotations

from typing import Final

DD_BLOCK_BYTES: Final = 16 * 1024
READS: Final = 64
SEGMENT_BYTES: Final = DD_BLOCK_BYTES * READS
# Two segments let the pump fill one while the host reads the other; the third hides the round trips.
# The rest delivered at the end is at most 3 MiB of the 16 MiB that the agent captures.
WINDOW: Final = 3

# Where the segments lie: /run (tmpfs, writable only by root) without a directory of its own, which
# saves a process; else a private directory in /tmp, where strangers could guess the next name.
PREFIXES: Final = ("/run/innkeeper-exec.{id}", "/tmp/innkeeper-exec.{id}/x")

# $1 session's id, $2 "1" with stdin, $3 working directory or "", $4 "1" with an environment, then argv.
# The environment comes as `export` lines on stdin, since everybody in the guest can read our arguments.
# Variables have names that should not hide any of the environment. Descriptors 3 (stdout's pipe),
# 4 (the environment), 6, 7 (what the agent captures), 8 (the command's stderr, so that the shell's own
# remarks like "Terminated" stay out of it) and 9 (stdin's control) are ours.
WRAPPER: Final = f"""
inn_p=/run/innkeeper-exec.$1 inn_d= inn_i=$2 inn_w=$3 inn_e=$4 inn_u=$(umask)
shift 4
if ! [ -w /run ]; then
  inn_d=${{inn_p#/run/}} inn_d=/tmp/$inn_d inn_p=$inn_d/x
  mkdir -m 700 "$inn_d" || exit 125
fi
inn_nl='
'
export PATH
[ "${{HOME+x}}" ] || {{ HOME=/root; export HOME; }}
umask 077

pump() {{
  n=0 o=0 f=
  while :; do
    r=$(LC_ALL=C dd bs={DD_BLOCK_BYTES} count={READS} of="$inn_p.$1.$n" 2>&1)
    t=${{r%% records in*}}
    t=${{t##*"$inn_nl"}}
    case $t in
      *[!0-9+]*|+*|*+|'') f=$r; break;;
    esac
    [ $((${{t%+*}} + ${{t#*+}})) -lt {READS} ] && break
    n=$((n + 1))
    if [ $n -ge {WINDOW} ]; then
      [ $n -gt {WINDOW} ] || {{ mkfifo "$inn_p.$1.a" && exec 5<>"$inn_p.$1.a"; }}
      read -r t <&5
      rm -f "$inn_p.$1.$o"
      o=$((o + 1))
    fi
  done
  echo $o
  while [ $o -le $n ]; do
    [ ! -s "$inn_p.$1.$o" ] || cat "$inn_p.$1.$o"
    o=$((o + 1))
  done
  [ ! "$f" ] || echo "$f" >&7
}}

feed() {{
  while read -r n <&9; do
    [ "$n" != e ] && cat "$inn_p.i.$n" 2>/dev/null && rm -f "$inn_p.i.$n" || break
  done
}}

# What exec would say has the number of a line of ours in it.
missing() {{
  echo "sh: $1: not found" >&2
  exit 127
}}

body() {{
  exec 8>&2 2>/dev/null
  (
    umask "$inn_u"
    [ ! "$inn_e" ] || eval "$(cat <&4)"
    exec 4<&-
    [ ! "$inn_w" ] || cd "$inn_w" 2>/dev/null || {{ echo "sh: cannot change to $inn_w" >&2; exit 126; }}
    case $1 in
      -*) ;;
      */*)
        [ -e "$1" ] || missing "$1"
        [ -x "$1" ] && ! [ -d "$1" ] || {{ echo "sh: $1: Permission denied" >&2; exit 126; }};;
      *) command -v "$1" >/dev/null 2>&1 || missing "$1";;
    esac
    exec "$@"
  ) 2>&8 3>&- 6>&- 7>&- 8>&- 9>&-
  echo $? >"$inn_p.s"
  [ ! "$inn_i" ] || echo e >&9
}}

exec 4<&0 6>&1 7>&2
{{
  if [ "$inn_i" ]; then
    mkfifo "$inn_p.c"
    exec 9<>"$inn_p.c"
    {{ feed 3>&- 6>&- 7>&- | body "$@"; }} 2>&1 >&3 3>&- | pump e >&7 3>&- 6>&- 9>&-
  else
    body "$@" </dev/null 2>&1 >&3 3>&- | pump e >&7 3>&- 6>&-
  fi
}} 3>&1 | pump o >&6
inn_s=125
read -r inn_s 2>/dev/null <"$inn_p.s"
rm -rf "$inn_p".* $inn_d </dev/null >/dev/null 2>&1 6>&- 7>&- &
exit $inn_s
"""

# $1 the session, $2 its id. Politely first; who does not listen, or made a process group of its own in
# the session, is killed. Fields after the name in /proc/PID/stat: state ppid pgrp session (proc(5)).
CANCEL: Final = """
kill -s TERM -- "-$1"
t=0
while [ $t -lt 5 ] && kill -s 0 -- "-$1"; do sleep 0.1 || sleep 1; t=$((t + 1)); done
kill -s KILL -- "-$1"
s=$1 i=$2
for f in /proc/[0-9]*/stat; do
  read -r l <"$f" || continue
  set -- ${l##*) }
  [ "$4" != "$s" ] || { f=${f#/proc/}; kill -s KILL "${f%/stat}"; }
done
rm -rf /run/innkeeper-exec.$i.* /tmp/innkeeper-exec.$i
exit 0
"""

# $1 the wrapper's process id, $2 the session's id: ends the wrapper and its descendants. What the
# command left running on purpose is init's child by then, and lives on.
RELEASE: Final = """
p=" $1 " i=$2 n=0
while [ $n -lt 5 ]; do
  for f in /proc/[0-9]*/stat; do
    read -r l <"$f" || continue
    set -- ${l##*) }
    f=${f#/proc/} f=${f%/stat}
    case $p in
      *" $f "*) ;;
      *" $2 "*) p="$p$f ";;
    esac
  done
  n=$((n + 1))
done
kill -s KILL $p
rm -rf /run/innkeeper-exec.$i.* /tmp/innkeeper-exec.$i
exit 0
"""

# $1 is not used, $2 the session's id: removes a piece of stdin that came after the wrapper's own end.
CLEAR: Final = "rm -rf /run/innkeeper-exec.$2.* /tmp/innkeeper-exec.$2"
