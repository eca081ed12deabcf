"""`inn top`."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from innkeeper.cli.app import App, note
from innkeeper.cli.command import complete_instances, verb
from innkeeper.cli.livescreen import Screen, live_screen
from innkeeper.cli.output import print_json, print_table
from innkeeper.cli.terminal import at_terminal
from innkeeper.cli.topdetail import detail
from innkeeper.cli.topview import BARS, PLAIN_BARS, SORT_KEYS, SORTS, cells, host_lines, sorted_by, table
from innkeeper.cli.topwhy import lines
from innkeeper.errors import BadRequest, InnkeeperError, NotFound
from innkeeper.units import parse_duration

Json = dict[str, Any]

LEAST_INTERVAL_S = 0.5
MOST_INTERVAL_S = 3600.0
# Nobody likes to wait for the first rates.
FIRST_INTERVAL_S = 1.0
# What counts as now: a reading that is not much older than the interval.
FRESH = 0.9
DAY_S = 86400.0
DAY_STEP_S = 1800.0
_QUIT = ("q", "Q", "\x03", "\x04")
_HELP = "q quit  sort by: c CPU  m memory  d disk  n network  a name  v vCPUs"
_HELP_ONE = "q quit"


@verb(
    "top",
    synopsis="inn top [NAME] [-v] [--sort cpu|memory|disk|network|name] [--interval TIME] [--once] [--json]"
    "\ninn top --why NAME [--since TIME] [--json]",
    examples="""
inn top
inn top web
inn top --why web --since 10m
inn top --once --sort memory
inn top --json | jq -r '.instances[] | select(.cpu.used > 0.9) | .name'
""",
)
@click.argument("name", metavar="[NAME]", required=False, shell_complete=complete_instances)
@click.option("-v", "--vcpus", is_flag=True, help="Show every vCPU and thread of each VM, too.")
@click.option("--sort", type=click.Choice(SORTS), default="cpu", show_default=True, help="What comes first.")
@click.option("--interval", metavar="TIME", default="2s", show_default=True, help="Time between readings.")
@click.option("--once", is_flag=True, help="Print one table after one interval, and end.")
@click.option("--why", is_flag=True, help="Say what holds the VM NAME up, and who uses what it lacks.")
@click.option("--since", metavar="TIME", help="With --why: how long a time up to now.  [default: 60s]")
def top(
    app: App,
    name: str | None,
    vcpus: bool,
    sort: str,
    interval: str,
    once: bool,
    why: bool,
    since: str | None,
) -> None:
    """Show what VMs and the host use.

    On a terminal a screen that is drawn again after each interval; elsewhere, with --once or with --json
    one answer after one interval. With NAME one VM in detail, with its threads and its last day.

    CPU% is of one CPU: two busy vCPUs are 200. WAIT% is the time in which vCPUs could have run and no
    CPU of the host was free; under KVM the guest sees it as steal. HELD% is the time in which its CPU
    limit held it. USED is resident in the host's memory, QEMU included; SHARED, of that, is shared with
    forks and other processes. A dash is what is not known: KVM's EXITS of a VM under TCG, network of one
    without guest agent, HELD of one without limit, and all of one that does not run.

    With --why: how much of the last minute the VM lost waiting for a CPU, by its own limits, to memory
    that was read back, to its disks, and to whoever runs this host as a VM; who used the CPUs, memory or
    device when it lost most, with what they were promised; and what to do about it. --since takes up to
    24h, in steps of a minute from 10m on.

    With --json: an object with host and instances, and with NAME instance instead, and history; the
    keys are those of GET /v1/metrics. With --why those of GET /v1/instances/NAME/why.
    """
    if why or since is not None:
        _explain(app, name, (since or "60s") if why else None)
        return
    interval_s = parse_duration(interval)
    if not LEAST_INTERVAL_S <= interval_s <= MOST_INTERVAL_S:
        raise BadRequest(f"Not an interval: {interval}", hint="choose one from 0.5s to 1h")
    if name is not None:
        app.client.instances.get_data(name)  # raises NotFound with close names
    watch = _Watch(app, name, interval_s)
    if not (once or app.json) and at_terminal():
        with live_screen(0) as screen:
            _live(watch, screen, sort, vcpus)
        return
    watch.read()
    time.sleep(interval_s)
    watch.read()
    if app.json:
        print_json(watch.answer())
    elif name is not None:
        for line in watch.detail(_columns(sys.stdout.isatty())):
            print(line.rstrip())
    else:
        _print_once(watch, sort, vcpus)


def _explain(app: App, name: str | None, since: str | None) -> None:
    if name is None:
        raise BadRequest("--why is about one VM", hint="say which one: inn top --why NAME")
    if since is None:
        raise BadRequest("--since belongs to --why", hint=f"try inn top --why {name} --since 10m")
    found = app.client.instances.handle(name).why(since=since)
    if app.json:
        print_json(found)
        return
    for line in lines(found, _columns(sys.stdout.isatty())):
        print(line)


class _Watch:
    """What was read last."""

    def __init__(self, app: App, name: str | None, interval_s: float) -> None:
        self._client, self.name, self.interval_s = app.client, name, interval_s
        self.metrics: Json = {}
        self.near: Json = {}
        self.day: Json = {}
        self.bars = BARS if _speaks_unicode() else PLAIN_BARS

    def read(self, interval_s: float | None = None) -> None:
        """`interval_s`: since the last reading, if it was not the usual time."""
        self.metrics = self._client.metrics(max_age_s=round((interval_s or self.interval_s) * FRESH, 3))
        if self.name is not None:
            handle = self._client.instances.handle(self.name)
            self.near = handle.history()
            self.day = handle.history(since=time.time() - DAY_S, resolution_s=DAY_STEP_S)

    @property
    def instances(self) -> list[Json]:
        found: list[Json] = self.metrics["instances"]
        return found

    def one(self) -> Json:
        """Raises NotFound when it was removed meanwhile."""
        for one in self.instances:
            if one["name"] == self.name:
                return one
        raise NotFound(f"No instance named {self.name} any more", hint="see what there is: inn list")

    def answer(self) -> Json:
        if self.name is None:
            return self.metrics
        return {"host": self.metrics["host"], "instance": self.one(), "history": self.day}

    def detail(self, width: int) -> list[str]:
        return detail(self.one(), self.near, self.day, width, bars=self.bars)

    def host_lines(self) -> list[str]:
        return host_lines(self.metrics["host"], self.instances, time.time())


def _live(watch: _Watch, screen: Screen, sort: str, vcpus: bool) -> None:
    """Until the user has seen enough. A daemon that is away for a moment ends nothing: the screen says so."""
    due, trouble, first = 0.0, "", min(watch.interval_s, FIRST_INTERVAL_S)
    reads = 0
    while True:
        if time.monotonic() >= due:
            try:
                watch.read(first if reads < 2 else None)
                trouble = ""
            except InnkeeperError as error:
                if not watch.metrics or error.code == "not_found":
                    raise
                trouble = str(error)
            due = time.monotonic() + (watch.interval_s if reads else first)
            reads += 1
        lines, title = _lines(watch, screen, sort, vcpus)
        screen.draw([*lines, trouble or (_HELP_ONE if watch.name else _HELP)], title=title)
        key = screen.key(max(0.0, due - time.monotonic()))
        if key in _QUIT:
            return
        if key == "v":
            vcpus = not vcpus
        sort = "name" if key == "a" else SORT_KEYS.get(key, sort)


def _lines(watch: _Watch, screen: Screen, sort: str, vcpus: bool) -> tuple[list[str], int]:
    """The lines but for the last one of the screen, and which of them is the title."""
    room = screen.height - 1
    lines = watch.host_lines()
    if watch.name is not None:
        return _filled([*lines, "", *watch.detail(screen.width)], room), -1
    head, rows = table(sorted_by(watch.instances, sort), screen.width, threads=vcpus)
    lines = [*lines, "", head]
    title, left = len(lines) - 1, room - len(lines)
    if len(rows) > left:
        hidden = len(rows) - left + 1
        rows = [*rows[: max(0, left - 1)], f"({hidden} more lines; inn top --once shows all)"]
    return _filled(lines + rows, room), title


def _filled(lines: list[str], room: int) -> list[str]:
    return [*lines, *[""] * (room - len(lines))][:room]


def _print_once(watch: _Watch, sort: str, vcpus: bool) -> None:
    found = sorted_by(watch.instances, sort)
    for line in watch.host_lines():
        print(line)
    titles, rows = cells(found)
    if vcpus:
        titles.append("THREADS")
        for one, row in zip(found, rows, strict=True):
            threads = one["cpu"]["threads"]
            row.append(" ".join(f"{thread['name']}={thread['used'] * 100:.1f}" for thread in threads))
    print_table(titles, rows)
    if not found and sys.stdout.isatty():
        note("no VMs here; make one with inn run tiny")


def _columns(terminal: bool) -> int:
    import shutil

    return shutil.get_terminal_size().columns if terminal else 120


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
