"""`make demo`: builds the images, boots VMs, runs commands in them, and says how long each step took.

Every step is a command a user could have typed; it is shown before it runs.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

INN = str(Path(sys.executable).parent / "inn")
NAME = "demo"


class Demo:
    def __init__(self) -> None:
        self.steps: list[tuple[str, float, str]] = []

    def inn(self, what: str, *words: str, needed: bool = True) -> bool:
        """Run one command, show it and its output, and note how long it took."""
        print(f"\n$ inn {shlex.join(words)}", flush=True)
        begun = time.perf_counter()
        status = subprocess.run([INN, *words], stdin=subprocess.DEVNULL, check=False).returncode
        took = time.perf_counter() - begun
        self.steps.append((what, took, "" if status == 0 else f"exit status {status}"))
        if status != 0 and needed:
            self.summary()
            sys.exit(f"demo: `inn {shlex.join(words)}` failed")
        return status == 0

    def build(self, image: str, needed: bool) -> bool:
        if subprocess.run([INN, "image", "show", image], capture_output=True, check=False).returncode == 0:
            self.steps.append((f"image {image}", 0.0, "there already"))
            return True
        return self.inn(f"image {image} built", "image", "build", image, needed=needed)

    def summary(self) -> None:
        width = max(len(what) for what, _, _ in self.steps)
        print(f"\n{'STEP':{width}}  TOOK")
        for what, took, note in self.steps:
            shown = f"{took:7.2f} s" if took else " " * 9
            print(f"{what:{width}}  {shown}  {note}".rstrip())
        sys.stdout.flush()


def main() -> None:
    demo = Demo()
    demo.inn("daemon answers", "version")
    for left in (NAME, *(f"{NAME}-{number}" for number in range(1, 11))):
        subprocess.run([INN, "rm", "--force", left], capture_output=True, check=False)
    demo.build("tiny", needed=True)
    demo.inn("tiny VM from nothing to ready", "run", "tiny", "--name", NAME, "-d")
    demo.inn("command in the guest", "exec", NAME, "--", "uname", "-a")
    demo.inn("forked into ten, each ready", "fork", NAME, "--count", "10", "--name", f"{NAME}-{{}}")
    demo.inn("command in a fork", "exec", f"{NAME}-7", "--", "hostname")
    demo.inn("list", "list")
    demo.inn("forks removed", "rm", "--force", *(f"{NAME}-{number}" for number in range(1, 11)))
    demo.inn("guest shut down", "stop", NAME)
    demo.inn("started again, to ready", "start", "--wait", "ready", NAME)
    demo.inn("removed", "rm", "--force", NAME)
    demo.inn("one command, one VM, gone after it", "run", "tiny", "--", "cat", "/proc/cpuinfo")
    if demo.build("debian", needed=False):
        demo.inn("full Debian to ready", "run", "debian", "--name", NAME, "--memory", "1GiB", "-d")
        demo.inn(
            "systemd in it", "exec", NAME, "--", "systemctl", "is-system-running", "--wait", needed=False
        )
        demo.inn("Debian removed", "rm", "--force", NAME)
    demo.summary()
    print("\nThe command is .venv/bin/inn; `inn --help` lists its verbs, `inn doctor` says what works here.")


if __name__ == "__main__":
    main()
