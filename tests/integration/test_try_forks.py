"""`inn try` with real guests: what each copy did, and that nothing of them is left."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest

from vms import traces
from vms.cli import Inn
from vms.daemon import Daemon
from vms.waiting import eventually

pytestmark = pytest.mark.vm

# What other programs of the guest write at any time: the DHCP client, on its new lease.
NOISE = {"/etc/resolv.conf"}


@pytest.fixture
def own(daemon: Daemon) -> Iterator[str]:
    """A name; what bears it is removed at the end."""
    yield "own-copy"
    for name in daemon.names():
        if name.startswith("own-copy"):
            daemon.client.instances.handle(name).remove(force=True)


def test_try_runs_compares_and_keeps_the_best(inn: Inn, daemon: Daemon, ready: str) -> None:
    inn("exec", ready, "--", "sh", "-c", "mkdir /srv; echo old >/srv/changes; echo x >/srv/goes").ok()
    before = set(daemon.names())
    script = (
        "test $(cat /srv/changes) = old || exit 9; echo new >/srv/changes; rm /srv/goes;"
        "echo $TRY_INDEX of $TRY_COUNT >/srv/$TRY_INDEX; echo oops >&2; test $TRY_INDEX = 1"
    )
    answer = inn("try", ready, "-n", "3", "--keep", "best", "--json", "--", "sh", "-c", script).ok().json
    results, best = answer["results"], answer["best"]
    try:
        assert [one["exit_status"] for one in results] == [1, 0, 1]
        assert [one["stderr"] for one in results] == ["oops\n"] * 3
        for index, one in enumerate(results):
            changes = one["changes"]
            assert set(changes["added"]) - NOISE == {f"/srv/{index}"}
            assert set(changes["changed"]) - NOISE == {"/srv/changes"}
            assert changes["removed"] == ["/srv/goes"] and not changes["truncated"]
        assert set(daemon.names()) - before == {best} == {results[1]["name"]}
        wanted = daemon.show(best)["wanted"]
        assert not wanted["remove_when_ended"] and not wanted["hold"]
        assert inn("exec", best, "--", "sh", "-c", "cat /srv/1; ls /dev/shm").ok().out == "1 of 3\n"
        # The VM itself is as it was, and nothing of ours is left in it.
        left = inn("exec", ready, "--", "sh", "-c", "cat /srv/changes; ls /srv /dev/shm").ok().out
        assert left.split() == ["old", "/dev/shm:", "/srv:", "changes", "goes"]
    finally:
        for name in set(daemon.names()) - before:
            daemon.client.instances.handle(name).remove(force=True)


def test_a_try_from_python_gets_a_name_for_the_best(daemon: Daemon, ready: str) -> None:
    before, vm = daemon.names(), daemon.client.instances.get(ready)
    results = vm.try_(
        [["false"], ["sh", "-c", "echo $A >/winner"]], envs=[{"A": "b"}], keep="best", name="gold"
    )
    try:
        gold = daemon.client.instances.get("gold")
        assert [(one.status, one.kept) for one in results] == [(1, False), (0, True)]
        assert results[1].name == "gold" and results[1].changes and "/winner" in results[1].changes.added
        assert gold.exec(["cat", "/winner"]).stdout == b"b\n" and gold.exec(["hostname"]).stdout == b"gold\n"
    finally:
        gold.remove(force=True)
    assert daemon.names() == before


def test_a_try_that_is_ended_leaves_nothing(inn: Inn, daemon: Daemon, ready: str) -> None:
    before, files = daemon.names(), traces.instance_files(daemon.paths)
    for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = inn.popen(
            "try", ready, "-n", "2", "--no-changes", "--", "sh", "-c", "echo on; exec sleep 4321",
            stdin=DEVNULL, stdout=PIPE, stderr=PIPE,
        )  # fmt: skip
        assert process.stdout and process.stdout.readline().endswith(b" | on\n")
        assert len(daemon.names()) == len(before) + 2
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode == status
        eventually(lambda: daemon.names() == before, "the copies are gone", 15.0)
        eventually(lambda: traces.instance_files(daemon.paths) == files, "their files too", 5.0)


def test_explain_says_what_the_fork_would(
    inn: Inn, daemon: Daemon, ready: str, own: str, boot_disk: Path
) -> None:
    found = inn("explain", "fork", ready, "--json").ok().json
    assert found["allowed"] and any("identity of its own" in one["what"] for one in found["findings"])
    spec = {"disks": [{"name": "own", "path": str(boot_disk)}], "networks": [], "memory": {"size": "16MiB"}}
    daemon.client.instances.create(spec, name=own, start=True, wait="running")
    answer = inn("explain", "fork", own)
    assert answer.status == 4 and "block  Disk own of" in answer.out and "no guest agent" in answer.out
    inn("fork", own).failed(4, "used in place")
