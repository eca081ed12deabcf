"""`inn advise`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click
from click.exceptions import Exit

from innkeeper.cli.app import App, note
from innkeeper.cli.command import complete_instances, verb
from innkeeper.cli.output import clean, print_json
from innkeeper.errors import BadRequest, InnkeeperError
from innkeeper.spec.advice import (
    LEAST_DATA_S,
    LEAST_TRIAL_S,
    LEAST_WINDOW_S,
    MOST_TRIAL_S,
    MOST_WINDOW_S,
)
from innkeeper.units import human_duration, parse_duration

Json = dict[str, Any]

KINDS = ("cpu", "memory", "disk", "pages", "numa")
OPEN = ("applying", "watching", "reverting")
# The day before yesterday's trials are of no interest where there are newer ones.
TRIALS_SHOWN = 3


@verb(
    "advise",
    synopsis="inn advise [NAME] [--window TIME] [--min-data TIME] [--json]\n"
    "inn advise [NAME] --apply [--kind KIND] [--watch TIME] [--window TIME] [--min-data TIME] [--json]",
    examples="""
inn advise                            of all VMs that run
inn advise web                        of one, with what was looked at and is well
inn advise web --window 10m           by the last ten minutes
inn advise web --apply                change it now, and take that back if the next ten minutes are worse
inn advise web --apply --kind memory --watch 1h
inn advise --json | jq -r '.instances[].advice[].command'
""",
    exit_status={
        0: "Done, also when there is nothing to advise or to apply.",
        4: "Refused: it does not run, or is being watched after a change already.",
    },
)
@click.argument("name", metavar="[NAME]", required=False, shell_complete=complete_instances)
@click.option("--window", metavar="TIME", default="1d", show_default=True, help="How far back to look.")
@click.option(
    "--min-data",
    metavar="TIME",
    help="How much of that there must be.  [default: 30m, of a short window half]",
)
@click.option("--apply", "applied", is_flag=True, help="Apply what can take effect now, and watch it.")
@click.option("--kind", type=click.Choice(KINDS), help="With --apply: only advice of this kind.")
@click.option(
    "--watch",
    metavar="TIME",
    help="With --apply: how long to watch it.  [default: as long as the window, 10m at most]",
)
def advise(
    app: App,
    name: str | None,
    window: str,
    min_data: str | None,
    applied: bool,
    kind: str | None,
    watch: str | None,
) -> None:
    """Say what would pay, by what VMs did.

    vCPUs, memory, disk limits, huge pages and NUMA placement, each by rules with fixed thresholds (see
    docs/howto/advice.md) from the history of the last day: what to do, what was seen, what to expect of
    it, and the command. Readings count from the last change of that size on, so after a change there is
    no new advice before enough is known again.

    With --apply the most urgent advice that can take effect while the VM runs is carried out, one thing
    for each VM. The daemon watches it for --watch and puts back what was before if that was worse, also
    when this command or the daemon ended meanwhile; inn advise NAME shows what became of it.

    With --json: an object with host and instances, or with NAME that instance: advice, withheld, trials;
    the keys are those of GET /v1/advice.
    """
    if not applied and (kind or watch):
        raise BadRequest("--kind and --watch are of --apply", hint="add --apply, or leave them out")
    asked: Json = {"window_s": _seconds("--window", window, LEAST_WINDOW_S, MOST_WINDOW_S)}
    if min_data is not None:
        asked["min_data_s"] = _seconds("--min-data", min_data, LEAST_DATA_S, MOST_WINDOW_S)
    if not applied:
        _show(app, name, asked)
        return
    asked |= {"kind": kind} if kind else {}
    if watch is not None:
        asked["watch_s"] = _seconds("--watch", watch, LEAST_TRIAL_S, MOST_TRIAL_S)
    if name is not None:
        answer = app.instance(name).apply_advice(**asked)
        if app.json:
            print_json(answer)
        else:
            _print_applied(answer, kind)
        return
    _apply_all(app, asked, kind)


def _seconds(option: str, text: str, least: float, most: float) -> float:
    found = parse_duration(text)
    if not least <= found <= most:
        hint = f"choose one from {least:g}s to {most / 3600:g}h"
        raise BadRequest(f"Not a time for {option}: {text}", hint=hint)
    return found


def _show(app: App, name: str | None, asked: Json) -> None:
    answer: Json = app.instance(name).advice(**asked) if name is not None else app.client.advice(**asked)
    if app.json:
        print_json(answer)
        return
    if name is not None:
        _print(_lines(answer, whole=True))
        return
    host = answer["host"]
    print(f"{clean(host['name'])}: {host['vcpus']} vCPUs of running VMs on {host['cpus']} CPUs")
    for one in answer["instances"]:
        _print(_lines(one, whole=False))
    if not answer["instances"]:
        note("no VM runs; there is nothing to go by")


def _apply_all(app: App, asked: Json, kind: str | None) -> None:
    """Each by itself: one that refuses keeps no other from it."""
    look = {key: value for key, value in asked.items() if key in ("window_s", "min_data_s")}
    report: Json = app.client.advice(**look)
    answers, status = [], 0
    for one in report["instances"]:
        if not any(advice["live"] for advice in _of_kind(one, kind)["advice"]):
            answers.append(one)
            continue
        try:
            answers.append(app.instance(one["name"]).apply_advice(**asked))
        except InnkeeperError as error:
            note(f"{one['name']}: {error}")
            status = max(status, error.exit_code)
    if app.json:
        print_json({**report, "instances": answers})
    else:
        for one in answers:
            _print_applied(one, kind)
        if not report["instances"]:
            note("no VM runs; there is nothing to apply")
    raise Exit(status)


def _print(lines: Iterator[str]) -> None:
    for line in lines:
        print(line)


def _lines(one: Json, *, whole: bool) -> Iterator[str]:
    """One VM: advice, and with `whole` what is well, what is not known, and all trials."""
    name = clean(one["name"])
    for advice in one["advice"]:
        yield f"{name}: {clean(advice['what'])}"
        yield f"  seen: {clean(advice['evidence'])}"
        yield f"  then: {clean(advice['effect'])}"
        if not advice["live"]:
            yield f"  when: at its next start; {clean(advice['why_not_live'])}"
        yield f"    {clean(advice['command'])}"
    if not one["advice"]:
        yield f"{name}: nothing to change{'' if whole else _why(one)}"
    if whole:
        for withheld in one["withheld"]:
            yield f"  {withheld['kind']}: {clean(withheld['what'])}"
    for trial in one["trials"][-TRIALS_SHOWN:]:
        if whole or trial["state"] in OPEN:
            yield f"  trial: {_trial(trial)}"


def _why(one: Json) -> str:
    first = next(iter(one["withheld"]), None)
    return f" ({first['kind']}: {clean(first['what'])})" if first else ""


def _trial(trial: Json) -> str:
    what, state = clean(trial["what"]), trial["state"]
    if state in OPEN:
        since_s = max(0.0, time.time() - (trial["changed_at"] or trial["started_at"]))
        span = f"{human_duration(since_s)} of {human_duration(trial['window_s'])}"
        return f"{what}: {state}, {span}"
    ago = human_duration(max(0.0, time.time() - trial["ended_at"]))
    return f"{what}: {state} {ago} ago, {clean(trial['outcome'])}"


def _of_kind(one: Json, kind: str | None) -> Json:
    """What was asked for, and nothing else."""
    if kind is None:
        return one
    said = {key: [each for each in one[key] if each["kind"] == kind] for key in ("advice", "withheld")}
    return {**one, **said}


def _print_applied(one: Json, kind: str | None) -> None:
    trial = one["trials"][-1] if one["trials"] else None
    if trial is None or trial["state"] not in OPEN:
        one = _of_kind(one, kind)
        _print(_lines(one, whole=False))
        if one["advice"]:
            note(f"{one['name']}: nothing of that can take effect while it runs")
        return
    name = clean(one["name"])
    print(f"{name}: {clean(trial['what'])}: done")
    print(f"  watched for {human_duration(trial['window_s'])}, and put back if that is worse; see")
    print(f"    inn advise {name}")
