"""The frame of the command line: help, usage errors, exit statuses, completion, and what it imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest
from cli_harness import Inn, inn, server

from fakes.api_server import ApiServer, Raw, instance
from innkeeper import errors
from innkeeper.cli import quick
from innkeeper.cli.command import InnCommand, LazyGroup
from innkeeper.cli.main import main
from innkeeper.cli.root import cli

__all__ = ["inn", "server"]  # fixtures


def all_commands(group: LazyGroup, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found.append(((*path, name), command))
        if isinstance(command, LazyGroup):
            found += all_commands(command, (*path, name))
    return found


assert isinstance(cli, LazyGroup)
COMMANDS = all_commands(cli)
IDS = [" ".join(path) for path, _ in COMMANDS]


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=IDS)
def test_every_command_has_a_whole_help_page(
    path: tuple[str, ...], command: click.Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*path, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"inn {' '.join(path)} - ")
    for section in ("Synopsis:", "Options:", "Examples:", "Exit status:"):
        assert f"\n{section}\n" in out
    assert f"inn {' '.join(path)}" in out.partition("Examples:")[2] or path[0] in ("serve",)
    assert all(len(line) <= 110 for line in out.splitlines())


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=IDS)
def test_every_verb_takes_json(path: tuple[str, ...], command: click.Command) -> None:
    if isinstance(command, InnCommand):
        assert any("--json" in option.opts for option in command.params)


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=IDS)
def test_the_table_says_what_the_command_says(path: tuple[str, ...], command: click.Command) -> None:
    assert command.name == path[-1]


def test_help_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    without = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == without
    assert "screenshot" in without


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["lst"], "No such command: lst (did you mean list?); see inn --help"),
        (["--what"], "see inn --help"),
        (["list", "--what"], "see inn list --help"),
        (["show"], "see inn show --help"),
        (["image", "biuld"], "did you mean build?"),
        (["start", "x", "--timeout", "5 weeks"], "Not a duration"),
        (["wait", "x", "--for", "ever"], "see inn wait --help"),
        (["run", "tiny", "--cpus", "0"], "see inn run --help"),
        (["run", "tiny", "--rm", "--keep"], "exclude each other"),
        (["run", "tiny", "--"], "No command after --"),
        (["exec", "web"], "No command given"),
        (["logs", "web", "-f", "--json"], "exclude each other"),
        (["show", "web", "--yaml", "--argv"], "exclude each other"),
        (["serve", "--stop", "--tcp", "x"], "no other option"),
        (["cp", "a", "b"], "Exactly one side"),
        (["cp", "a:x", "b:y"], "Exactly one side"),
        (["console", "web", "--escape", "ctrl-long"], "Not a key"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(inn: Inn, args: list[str], said: str) -> None:
    ran = inn(*args)
    assert ran.status == 2
    assert ran.err.startswith("inn: ") and ran.err.count("\n") == 1
    assert said in ran.err
    assert ran.out == "" or "--json" in args


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.SpecError("a"), 2),
        (errors.NotFound("b", hint="c"), 3),
        (errors.WrongState("d"), 4),
        (errors.NoCapacity("e"), 4),
        (errors.StartFailed("f\nwith\nlines"), 1),
        (errors.GuestTimeout("g"), 1),
    ],
)
def test_errors_are_one_line_and_their_status(
    inn: Inn, server: ApiServer, error: errors.InnkeeperError, status: int
) -> None:
    server.answer("POST", "/v1/instances/web/start", error)
    ran = inn("start", "web")
    assert (ran.status, ran.err, ran.out) == (status, f"inn: {error}\n", "")
    ran = inn("start", "web", "--json")
    assert ran.status == status
    assert ran.json == {"error": error.to_dict()}


def test_a_bug_is_one_line_without_a_traceback(
    inn: Inn, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer("GET", "/v1/instances", {"unexpected": 1})
    ran = inn("list")
    assert ran.status == 1
    assert ran.err.startswith("inn: Internal error: KeyError") and ran.err.count("\n") == 1
    monkeypatch.setenv("INNKEEPER_DEBUG", "1")
    assert "Traceback" in inn("list").err


def run_inn(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "innkeeper.cli.main", *args],
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


HEAVY = (
    "pydantic", "rich", "yaml", "websockets", "asyncio", "logging", "http.client", "email", "ssl",
    "importlib.metadata", "subprocess",
)  # fmt: skip


def test_list_imports_nothing_heavy(server: ApiServer) -> None:
    server.answer("GET", "/v1/instances", {"instances": [instance("a")]})
    code = (
        "import sys; from innkeeper.cli.main import main; status = main(['list']);"
        f"print(status, [name for name in {HEAVY!r} if name in sys.modules], len(sys.modules) < 200)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout.splitlines()[-1] == "0 [] True"


def test_importing_the_package_imports_nothing() -> None:
    code = "import sys; import innkeeper; print([n for n in sys.modules if n.startswith('innkeeper')])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "['innkeeper']\n"


def test_a_closed_pipe_is_silent(server: ApiServer) -> None:
    server.answer("GET", "/v1/instances", {"instances": [instance(f"vm-{i}") for i in range(5000)]})
    inn_list = f"{sys.executable} -m innkeeper.cli.main list"
    # Unbuffered, Python takes the end of a write that was cut short for success.
    command = (
        f"unset PYTHONUNBUFFERED; {inn_list} | head -1; echo ${{PIPESTATUS[0]}}; {inn_list} >&-; echo $?"
    )
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert ran.stderr == ""
    assert ran.stdout.splitlines()[1:] == ["141", "0"]


def test_ctrl_c_is_130_and_sigterm_143(server: ApiServer) -> None:
    import signal
    import time

    for args, number, status in (
        (["wait", "web"], signal.SIGINT, 130),
        (["run", "tiny", "--name", "web"], signal.SIGTERM, 143),
    ):
        server.answer("GET", "/v1/instances/web/wait", Raw(b"", hold=True))
        server.answer("POST", "/v1/instances", Raw(b"", hold=True))
        server.answer("GET", "/v1/instances/web", instance("web", created_at=time.time() + 9))
        server.answer("DELETE", "/v1/instances/web", {"removed": "web"})
        server.requests.clear()
        process = subprocess.Popen(
            [sys.executable, "-m", "innkeeper.cli.main", *args],
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        while not server.requests:
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
        assert process.returncode == status
        assert "Traceback" not in err
        deleted = server.sent("DELETE", "/v1/instances/web")
        assert [one.query for one in deleted] == ([] if args[0] == "wait" else [{"force": "true"}])


def test_version(inn: Inn, server: ApiServer) -> None:
    server.answer("GET", "/v1/version", {"version": "9", "pid": 5, "mode": "session", "state_dir": "/s"})
    assert inn("--version").out.startswith("inn ")
    assert inn("version", "--json").json["daemon"]["pid"] == 5
    assert "session" in inn("version").out
    server.stop()
    ran = inn("version")
    assert ran.status == 0 and "not running" in ran.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(inn: Inn, shell: str) -> None:
    ran = inn("completion", shell)
    assert ran.status == 0 and "_INN_COMPLETE" in ran.out and "%" not in ran.out.replace("%%", "")[:40]
    assert inn("completion", shell, "--json").json["shell"] == shell


def complete(words: str, server: ApiServer) -> list[str]:
    ran = run_inn(
        env={"_INN_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    )
    return [line.partition(",")[2] for line in ran.stdout.splitlines() if line]


def test_completion_completes(server: ApiServer) -> None:
    server.answer("GET", "/v1/instances", {"instances": [instance("web"), instance("worker")]})
    server.answer("GET", "/v1/images", {"images": [{"name": "tiny"}]})
    assert complete("inn st", server) == ["start", "stop"]
    assert complete("inn start we", server) == ["web"]
    assert complete("inn run t", server) == ["tiny"]
    assert complete("inn image b", server) == ["build"]
    assert "--timeout" in complete("inn stop --", server)
    server.stop()
    assert complete("inn start we", server) == []


def test_state_option_names_another_daemon(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer("GET", "/v1/instances", {"instances": []})
    monkeypatch.setenv("INNKEEPER_STATE", "/nowhere")
    assert main(["--state", str(server.paths.state), "list"]) == 0


def test_json_error_of_bad_usage(inn: Inn) -> None:
    ran = inn("list", "--json", "--what")
    assert json.loads(ran.out)["error"]["code"] == "bad_request"


@pytest.mark.parametrize("verb", sorted(quick.ACTIONS))
def test_the_quick_way_asks_what_the_parser_asks(verb: str, server: ApiServer) -> None:
    asked = []
    for args in ([verb, "a", "b"], ["--state", str(server.paths.state), verb, "a", "b"]):
        for name in ("a", "b"):
            server.answer("POST", f"/v1/instances/{name}/{verb}", instance(name))
        server.requests.clear()
        assert main(args) == 0
        asked.append([(one.method, one.path, one.body) for one in server.requests])
    assert len(asked[0]) == 2
    assert asked[0] == asked[1]


@pytest.mark.parametrize("verb", sorted(quick.ACTIONS))
def test_a_plain_verb_does_without_click(verb: str, server: ApiServer) -> None:
    server.answer("POST", f"/v1/instances/a/{verb}", instance("a"))
    code = (
        f"import sys; from innkeeper.cli.main import main; status = main(['{verb}', 'a']);"
        "print(status, 'click' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "a\n0 False\n"
