"""Forks, forks of forks and removals at random, many at once; afterwards everything is where it belongs.

The short form takes some 20 s; with INNKEEPER_LONG=1 there are more VMs and clients, for minutes.
INNKEEPER_SEED chooses what is done.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from pathlib import Path

import pytest

from innkeeper.errors import InnkeeperError
from vms import forks
from vms.daemon import Daemon
from vms.forks import DISK, Guest, Parent

pytestmark = pytest.mark.vm

LONG = bool(os.environ.get("INNKEEPER_LONG"))
SECONDS, CLIENTS, MOST_VMS, MOST_COPIES = (120.0, 8, 60, 8) if LONG else (8.0, 3, 8, 3)
SEED = int(os.environ.get("INNKEEPER_SEED") or 1)
# What concurrent verbs may answer: somebody else was first, or is at it.
EXPECTED = {"not_found", "wrong_state", "name_taken", "conflict", "no_capacity", "refused", "guest_timeout"}


class Family:
    """Every VM descends from `root`; each has the marks of its ancestors up to when it was forked, and one of
    its own. Only what was acknowledged counts."""

    def __init__(self, daemon: Daemon, root: Guest, marks: tuple[str, ...]) -> None:
        self.daemon = daemon
        self.marks: dict[str, tuple[str, ...]] = {root.name: marks}
        self.gone: set[str] = set()
        self.wrong: list[str] = []
        self.done: dict[str, int] = {}
        self._lock = threading.Lock()
        self._number = 0

    def pick(self, choose: random.Random, *, take: bool = False) -> str:
        """One of those that are there; with `take` nobody else gets it any more. Never the root."""
        with self._lock:
            names = sorted(self.marks)[0 if not take else 1 :]
            name = choose.choice(names) if names else ""
            if take and name:
                del self.marks[name]
            return name

    def fork(self, choose: random.Random) -> None:
        count = choose.randint(1, MOST_COPIES)
        with self._lock:
            if len(self.marks) + count > MOST_VMS:
                return
            self._number += 1
            pattern = f"vm-{self._number}-{{}}"
        name = self.pick(choose)
        known = self.marks.get(name)
        if known is None:
            return
        answer = Guest(self.daemon, name).instance.fork(count=count, name=pattern, timeout_s=120)
        for copy in answer["instances"]:
            guest = Guest(self.daemon, copy["name"])
            if guest.sh("hostname") != guest.name:
                self.wrong.append(f"{guest.name} does not know its name")
            # Before anybody else may fork it: what it has is settled from then on.
            guest.write(f"of-{guest.name}")
            with self._lock:
                self.marks[guest.name] = (*known, f"of-{guest.name}")

    def remove(self, choose: random.Random) -> None:
        if name := self.pick(choose, take=True):
            Guest(self.daemon, name).remove()
            self.gone.add(name)

    def check(self, choose: random.Random) -> None:
        name = self.pick(choose)
        if known := self.marks.get(name):
            try:
                Guest(self.daemon, name).check(*known)
            except (AssertionError, InnkeeperError) as error:
                if name in self.marks:  # else somebody removed it meanwhile
                    self.wrong.append(f"check of {name}: {error}")

    def work(self, seed: int, until: float) -> None:
        choose = random.Random(seed)
        verbs = [self.fork, self.fork, self.remove, self.remove, self.check]
        while time.monotonic() < until:
            verb = choose.choice(verbs)
            try:
                verb(choose)
                with self._lock:
                    self.done[verb.__name__] = self.done.get(verb.__name__, 0) + 1
            except InnkeeperError as error:
                if error.code not in EXPECTED:
                    self.wrong.append(f"{verb.__name__}: {error.code}: {error}")
            except AssertionError as error:
                self.wrong.append(f"{verb.__name__}: {error}")


def _check_file_system(guest: Guest, place: Path) -> None:
    """From the files of its disk, as they are when it has let go of it."""
    guest.sh(f"sync; umount {DISK}")
    raw = place / f"{guest.name}.raw"
    top = forks.chain(guest.daemon, guest.name)[0]
    argv = ["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", str(top), str(raw)]
    subprocess.run(argv, check=True, timeout=60)
    done = subprocess.run(["e2fsck", "-fn", str(raw)], capture_output=True, text=True, timeout=60)
    raw.unlink()
    assert done.returncode == 0, f"{guest.name}: {done.stdout}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_forks_and_removals_at_random(host: Daemon, tmp_path: Path) -> None:
    root = Parent(host, "root", networks=[])
    root.note("root")
    family = Family(host, root, root.marks)
    until = time.monotonic() + SECONDS
    clients = [
        threading.Thread(target=family.work, args=(SEED * 1000 + number, until)) for number in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join(SECONDS + 200)
        assert not client.is_alive(), "a verb got no answer"
    print(f"seed {SEED}: {family.done}, {len(family.marks)} VMs left, {len(family.gone)} removed")
    assert not family.wrong, "\n".join(family.wrong)
    # Names: those that are there, and no other; forks that failed left none.
    assert sorted(host.names()) == sorted(family.marks)
    root.check_all()
    for name, marks in family.marks.items():
        assert Guest(host, name).sh("hostname") == name
        Guest(host, name).check(*marks)
    forks.assert_nothing_remains(host, 30.0)
    for name in random.Random(SEED).sample(sorted(family.marks), min(4, len(family.marks))):
        _check_file_system(Guest(host, name), tmp_path)
    assert leaks(host) == "ok"
    assert family.done.get("fork", 0) >= (10 if LONG else 1), "too little was done to mean anything"
    for name in sorted(family.marks):
        Guest(host, name).remove()
    forks.assert_nothing_remains(host, 30.0)
    assert not list(host.paths.layers.iterdir()), "layers that nobody has any more"


def leaks(daemon: Daemon) -> str:
    (found,) = (one for one in daemon.client.host.doctor() if one["name"] == "leaks")
    return str(found["verdict"] if found["verdict"] == "ok" else found["detail"])
