"""Kernel same-page merging under forks: what two guests write alike becomes one page again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vms.daemon import Daemon
from vms.waiting import eventually

Note = Callable[[str, object], None]
KSM = Path("/sys/kernel/mm/ksm")
ALIKE_MIB = 12


@pytest.fixture
def ksm() -> Iterator[None]:
    """Running fast for this test, then off again with everything unmerged."""
    before = {name: (KSM / name).read_text() for name in ("pages_to_scan", "sleep_millisecs", "run")}
    (KSM / "pages_to_scan").write_text("20000")
    (KSM / "sleep_millisecs").write_text("20")
    (KSM / "run").write_text("1")
    yield
    (KSM / "run").write_text("2")
    for name, value in before.items():
        (KSM / name).write_text(value)


def sharing() -> int:
    return int((KSM / "pages_sharing").read_text())


def test_equal_pages_of_two_guests_are_merged(plain_host: Daemon, ksm: None, record_property: Note) -> None:
    """Copies map their RAM privately, so what they write is their own, and may be merged."""
    client = plain_host.client
    parent = client.instances.create({"image": "tiny"}, name="origin", start=True, wait="ready")
    try:
        parent.exec(["sh", "-c", f"head -c {ALIKE_MIB}000000 /dev/urandom >/seed"])
        names = [copy["name"] for copy in parent.fork(count=2, name="alike-{}")["instances"]]
        before = sharing()
        sums = set()
        for name in names:  # the same bytes, written by each of them for itself
            done = client.instances.handle(name).exec(["sh", "-ec", "cp /seed /alike; sha256sum </alike"])
            assert done.status == 0
            sums.add(done.stdout)
        alike = ALIKE_MIB * 1_000_000 // 4096
        merged = eventually(
            lambda: sharing() - before if sharing() - before >= 0.9 * alike else 0,
            f"90 % of {alike} pages are shared, now {sharing() - before}",
            30.0,
            every_s=0.5,
        )
        record_property("pages_merged", merged)
        again = {
            client.instances.handle(name).exec(["sha256sum", "/alike"]).stdout.split()[0] for name in names
        }
        assert len(sums) == len(again) == 1
        assert {one.split()[0] for one in sums} == again
    finally:
        for one in client.instances.list():
            one.remove(force=True)
