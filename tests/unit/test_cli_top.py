"""`inn top`: what it shows, on which screen, and how it is left."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
from collections.abc import Iterator
from typing import Any

import pytest
from cli_harness import Inn, inn, server
from hypothesis import given
from hypothesis import strategies as st
from test_cli_terminal import Terminal, terminal

from fakes.api_server import ApiServer, Request, instance
from innkeeper.cli import topdetail, topview
from innkeeper.errors import Failed, NotFound

__all__ = ["inn", "server", "terminal"]  # fixtures

HOST = {
    "name": "h1", "at": 1.0, "interval_s": 2.0, "cpus": 4, "used": 1.5, "iowait": 0.0, "stolen": 0.25,
    "per_cpu": [0.5, 1.0, 0, 0], "load": [1.0, 2.0, 3.0], "memory_bytes": 8 << 30,
    "memory_available_bytes": 6 << 30, "swap_bytes": 0, "swap_free_bytes": 0,
    "pressure": {"cpu": 0.125, "memory": 0.0, "io": 0.01},
}  # fmt: skip


RESIDENT = {"resident": 100 << 20, "private": 60 << 20, "shared": 40 << 20, "swapped": 0}


def vm(name: str, used: float | None = None, **fields: Any) -> dict[str, Any]:
    threads = [] if used is None else [_thread("vcpu0", used), _thread("emulator", 0.01)]
    return {
        "name": name, "uid": "u", "state": "stopped" if used is None else "running",
        "accelerator": "" if used is None else "tcg", "pid": 0 if used is None else 7, "at": 1.0,
        "interval_s": None if used is None else 2.0,
        "cpu": {"given": 1, "used": used, "emulator": used and 0.01, "waited": used and 0.05,
                "throttled": None, "threads": threads},
        "memory": {"given": 256 << 20, "proportional": None, "huge": None, "merged": None, "balloon": None,
                   "age_s": None, **dict.fromkeys(("resident", "private", "shared", "swapped")),
                   **({} if used is None else RESIDENT)},
        "faults": None if used is None else {"minor": 1500.0, "major": 0.0},
        "disk": None, "network": None, "kvm": None, "pressure": None, "numa": None, "totals": {}, **fields,
    }  # fmt: skip


def _thread(name: str, used: float) -> dict[str, Any]:
    return {"name": name, "kind": "vcpu", "tid": 1, "used": used, "waited": 0.05}


DISK = {"read_bytes": 5e6, "write_bytes": 0.0, "read_ops": 90.0, "write_ops": 9.0, "flush_ops": 0, "age_s": 1}
NETWORK = {
    "rx_bytes": 1e9, "tx_bytes": 10.0, "rx_packets": 1.0, "tx_packets": 1.0, "source": "guest", "age_s": 1.0,
}  # fmt: skip
FLEET = [vm("web", 0.98), vm("db", 0.2, disk=DISK), vm("net", 0.1, network=NETWORK), vm("off")]
HISTORY = {
    "name": "web", "step_s": 5, "times": [0.0, 5.0, 10.0], "average": {"cpu": [0.0, None, 1.0]},
    "peak": {"cpu": [0.1, None, 1.0]},
}  # fmt: skip


@pytest.fixture
def fleet(server: ApiServer) -> Iterator[ApiServer]:
    def one(request: Request) -> Any:
        name = request.path.split("/")[3]
        if name not in {"web", "db", "net", "off"}:
            raise NotFound(f"No instance named {name}", hint="did you mean web?")
        return instance(name)

    server.answer("GET", "/v1/metrics", {"host": HOST, "instances": FLEET})
    server.answer("GET", "/v1/instances/[^/]+", one)
    server.answer("GET", "/v1/instances/[^/]+/metrics", HISTORY)
    yield server


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"), (0, "0"), (812.4, "812"), (1023, "1.0K"), (1536, "1.5K"), (10 << 10, "10K"),
        (999 << 10, "999K"), (1000 << 10, "1.0M"), (256 << 20, "256M"), (1.4 * 2**30, "1.4G"),
        (2**50, "1024T"),
    ],
)  # fmt: skip
def test_sizes(value: float | None, shown: str) -> None:
    assert topview.size(value) == shown


@given(st.floats(0, 2.0**49))
def test_numbers_have_five_places_at_most(value: float) -> None:
    assert len(topview.size(value)) <= 5
    assert len(topview.count(min(value, 1e12))) <= 5
    assert len(topview.percent(min(value, 255.0))) <= 5


def test_sparks() -> None:
    assert topview.sparkline([0.0, 0.5, 1.0, None, 7.0], 1.0) == " ▄█·█"
    assert topview.sparkline([0.0, 1.0, None], 1.0, topview.PLAIN_BARS) == " #_"


# -- the table ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [20, 40, 80, 132, 250])
@pytest.mark.parametrize("threads", [False, True])
def test_lines_fit_the_screen(width: int, threads: bool) -> None:
    many = [*FLEET, vm("a" * 63, 0.5), vm("big", 127.4, disk={**DISK, "read_bytes": 3e12})]
    head, lines = topview.table(many, width, threads=threads)
    assert all(len(line) <= max(width, 20) for line in (head, *lines))
    assert (head.startswith("NAME") and "CPU%" in head) or width < 22


def test_what_matters_most_is_shown_on_a_small_screen() -> None:
    head, lines = topview.table(FLEET, 80)
    for title in ("STATE", "CPU%", "WAIT%", "USED", "READ/s", "WRITE/s", "RX/s", "TX/s"):
        assert title in head.split()
    assert "EXITS/s" not in head  # nobody has any
    assert lines[0].split()[:4] == ["web", "running", "98.0", "5.0"]
    assert "EXITS/s" in topview.table([vm("k", 1.0, kvm={"exits": 1234.0})], 200)[0]


def test_order() -> None:
    def names(sort: str) -> list[str]:
        return [str(one["name"]) for one in topview.sorted_by(FLEET, sort)]

    assert names("cpu") == ["web", "db", "net", "off"]
    assert names("disk")[0] == "db" and names("network")[0] == "net"
    assert names("name") == ["db", "net", "off", "web"]
    assert all(names(sort)[-1] == "off" for sort in ("cpu", "memory"))


def test_a_name_cannot_steer_the_terminal() -> None:
    evil = vm("x", 0.5, state="\x1b[2Jrunning")
    head, lines = topview.table([evil], 80)
    assert "\x1b" not in "".join([head, *lines, *topdetail.detail(evil, {}, {}, 80)])


def test_a_vm_in_detail() -> None:
    full = vm(
        "web",
        0.98,
        disk=DISK,
        network=NETWORK,
        kvm={"exits": 2000.0, "halt_exits": 1500.0, "io_exits": 100.0},
        numa={"local": 0.75, "nodes": {"0": 3 << 20, "1": 1 << 20}},
        pressure={"cpu": 0.5, "memory": 0, "io": 0},
    )
    full["memory"]["balloon"] = 200 << 20
    lines = topdetail.detail(full, HISTORY, HISTORY, 80)
    text = "\n".join(lines)
    assert all(len(line) <= 80 for line in lines)
    for words in (
        "vcpu0         98.0 %  5.0 % waited",
        "60M private, 40M shared, 0 swapped",
        "1.5k/s minor",
        "4.8MB/s read (90/s)",
        "as the guest says",
        "2.0k exits/s: halt 1.5k, io 100",
        "75.0 % local: node 0 3.0M, node 1 1.0M",
        "·█  peak 1.00 of 1 CPUs",
    ):
        assert words in text
    parts = next(number for number, line in enumerate(lines) if line.strip().startswith("of that"))
    assert lines[parts - 1].startswith("Memory")  # of which it is a part: nothing comes between
    off = topdetail.detail(vm("off"), {"average": {}, "peak": {}}, {}, 80)
    assert off[0].startswith("off  stopped")


# -- the command ---------------------------------------------------------------------------------------


def test_not_on_a_terminal_one_table(inn: Inn, fleet: ApiServer) -> None:
    ran = inn("top", "--interval", "500ms")
    assert ran.status == 0
    lines = ran.out.splitlines()
    assert "CPU 1.50 of 4 (0.25 stolen)" in lines[0] and "memory 2.0G of 8.0G" in lines[0]
    assert "3 of 4 VMs running" in lines[1] and "cpu 12.5" in lines[1]
    assert lines[2].split()[:4] == ["NAME", "STATE", "ACCEL", "CPU%"] and lines[2].split()[-1] == "NUMA%"
    assert [line.split()[0] for line in lines[3:]] == ["web", "db", "net", "off"]
    asked = fleet.sent("GET", "/v1/metrics")
    assert len(asked) == 2 and asked[0].query == {"max_age_s": "0.45"}  # an interval apart
    assert "vcpu0=98.0" in inn("top", "--once", "-v", "--interval", "0.5").out


def test_json(inn: Inn, fleet: ApiServer) -> None:
    told = inn("top", "--json", "--interval", "500ms").json
    assert set(told) == {"host", "instances"}
    told = inn("top", "web", "--json", "--interval", "500ms").json
    assert set(told) == {"host", "instance", "history"}
    assert told["instance"]["name"] == "web" and told["history"]["peak"]["cpu"] == [0.1, None, 1.0]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("nobody",), 3, "did you mean web"),
        (("../x",), 3, "No instance is named"),
        (("--interval", "0"), 2, "0.5s to 1h"),
        (("--interval", "1d"), 2, "0.5s to 1h"),
        (("--interval", "-1"), 2, "Not a duration"),
        (("--sort", "size"), 2, "size"),
        (("web", "db"), 2, "unexpected"),
    ],
)
def test_bad_usage(inn: Inn, fleet: ApiServer, words: tuple[str, ...], status: int, said: str) -> None:
    ran = inn("top", *words)
    assert ran.status == status and said in ran.err
    assert len(ran.err.splitlines()) == 1


# -- on a terminal -----------------------------------------------------------------------------------


def _size(terminal: Terminal, lines: int, columns: int) -> None:
    fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


def _frame(terminal: Terminal) -> list[str]:
    whole = terminal.shown.rsplit(b"\x1b[J", 1)[0].rsplit(b"\x1b[H", 1)[1].decode()
    for sequence in ("\x1b[K", "\x1b[7m", "\x1b[0m"):
        whole = whole.replace(sequence, "")
    return [line.rstrip() for line in whole.split("\r\n")]


def test_a_screen_with_keys(terminal: Terminal, fleet: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    before = termios.tcgetattr(terminal.slave)
    _size(terminal, 24, 80)
    terminal.inn("top", "--interval", "0.5s")
    terminal.until(b"q quit")
    frame = _frame(terminal)
    assert len(frame) == 24 and all(len(line) <= 80 for line in frame)
    assert frame[3].startswith("NAME") and frame[4].startswith("web") and terminal.is_raw
    terminal.shown = b""
    terminal.type(b"d")
    terminal.until(b"\x1b[J")
    assert _frame(terminal)[4].startswith("db")
    terminal.shown = b""
    terminal.type(b"v\x1b[A")  # an arrow means nothing, and ends nothing
    terminal.until(b"vcpu0 98.0")
    terminal.shown = b""
    _size(terminal, 6, 40)
    terminal.until(b"more lines")
    frame = _frame(terminal)
    assert len(frame) == 6 and all(len(line) <= 40 for line in frame)
    terminal.type(b"q")
    terminal.until(b"\x1b[?1049l")
    assert terminal.wait() == 0
    assert termios.tcgetattr(terminal.slave)[3] & ~termios.PENDIN == before[3] & ~termios.PENDIN


def test_a_daemon_that_is_away_is_told_on_the_screen(terminal: Terminal, fleet: ApiServer) -> None:
    terminal.inn("top", "web", "--interval", "0.5s")
    terminal.until(b"98.0 %")
    fleet.answer("GET", "/v1/metrics", Failed("The store is on fire", hint="wait"))
    terminal.until(b"on fire")
    fleet.answer("GET", "/v1/metrics", {"host": HOST, "instances": [vm("web", 0.123)]})
    terminal.until(b"12.3 %")
    terminal.type(b"\x03")
    assert terminal.wait() == 0


def test_one_that_is_removed_meanwhile_ends_it(terminal: Terminal, fleet: ApiServer) -> None:
    terminal.inn("top", "web", "--interval", "0.5s")
    terminal.until(b"98.0 %")
    fleet.answer("GET", "/v1/instances/web/metrics", NotFound("No instance named web", hint="inn list"))
    terminal.until(b"inn: No instance named web")
    assert terminal.wait() == 3
    assert b"\x1b[?1049l" in terminal.shown and not terminal.is_raw


def test_a_signal_gives_the_terminal_back(terminal: Terminal, fleet: ApiServer) -> None:
    terminal.inn("top")
    terminal.until(b"q quit")
    assert terminal.process is not None
    os.kill(terminal.process.pid, signal.SIGTERM)
    terminal.until(b"\x1b[?1049l")
    assert terminal.wait() == 128 + signal.SIGTERM
    assert not terminal.is_raw
