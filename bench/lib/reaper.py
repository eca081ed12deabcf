"""`python -m bench.lib.reaper PROGRAM [ARG]...`: run a daemon of libvirt as its usual home would.

Two things of sandboxes and containers would be measured as seconds of libvirt's time. Its QEMU
processes detach themselves and become children of init, and it takes them for alive until init has
reaped them, which may be slow: as a child subreaper (prctl(2)) this process gets and reaps them at
once. And where /dev/kvm opens but does not work, libvirt looks at it for 15 s before each domain: in
a mount namespace of its own it sees none, and runs TCG domains as they are meant.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType
from typing import Final

PR_SET_CHILD_SUBREAPER: Final = 36
CLONE_NEWNS: Final = 0x20000
MS_BIND: Final = 0x1000
MS_REC_PRIVATE: Final = 0x4000 | 0x40000
END_WITHIN_S: Final = 8


def main() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.path.exists("/dev/kvm") and libc.unshare(CLONE_NEWNS) == 0:
        libc.mount(None, b"/", None, MS_REC_PRIVATE, None)
        libc.mount(b"/dev/null", b"/dev/kvm", None, MS_BIND, None)
    child = subprocess.Popen(sys.argv[1:])
    print(child.pid, flush=True)

    def end(number: int, frame: FrameType | None) -> None:
        os.kill(child.pid, signal.SIGKILL if number == signal.SIGALRM else number)
        signal.alarm(END_WITHIN_S)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, end)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child.pid:
            return os.waitstatus_to_exitcode(status) & 0xFF


if __name__ == "__main__":
    sys.exit(main())
