"""`inn try` and Instance.try_: who gets which command, what is kept, what changed, what is left (nothing)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cli_harness import Inn, inn, server

from fakes.api_server import ApiServer, Body, FakeSocket, Request, instance
from innkeeper import errors
from innkeeper.client import changes
from innkeeper.client.changes import Changes
from innkeeper.client.try_ import TryResult, attempts_of, best_of, exit_status, to_keep

__all__ = ["inn", "server"]  # fixtures

# -- who gets what ----------------------------------------------------------------------------------------


def test_one_command_for_all_and_one_for_each() -> None:
    first, second = attempts_of(["make", "check"], 2, env={"A": "b"})
    assert first.argv == second.argv == ("make", "check")
    assert second.env == {"A": "b", "TRY_INDEX": "1", "TRY_COUNT": "2"}
    assert [one.argv for one in attempts_of([["a"], ["b", "c"]], None)] == [("a",), ("b", "c")]
    assert [one.env["X"] for one in attempts_of(["a"], None, [{"X": "1"}, {"X": "2"}])] == ["1", "2"]
    assert len(attempts_of(["a"], None)) == 1
    assert [one.env["X"] for one in attempts_of(["a"], 2, [{"X": "1"}])] == ["1", "1"]


@pytest.mark.parametrize(
    ("commands", "count", "envs"),
    [([], 1, []), ([["a"], ["b"]], 3, []), ([["a"], ["b"]], None, [{}, {}, {}]), (["a"], 257, [])],
)
def test_what_does_not_belong_together(commands: Any, count: int | None, envs: Any) -> None:
    with pytest.raises(errors.BadRequest):
        attempts_of(commands, count, envs)


def result(index: int, status: int | None, seconds: float) -> TryResult:
    return TryResult(index, f"web-{index}", ("x",), status, seconds)


def test_the_best_is_the_quickest_that_succeeded() -> None:
    results = [result(0, 0, 3.0), result(1, 2, 0.1), result(2, 0, 1.0), result(3, None, 0.1)]
    best = best_of(results)
    assert best is not None and best.index == 2
    assert exit_status(results) == 0
    assert [one.index for one in to_keep(results, "best")] == [2]
    assert [one.index for one in to_keep(results, "failed")] == [1, 3]
    assert len(to_keep(results, "all")) == 4 and to_keep(results, "none") == []


def test_without_a_success_the_lowest_status_counts_and_nothing_is_the_best() -> None:
    results = [result(0, 7, 1.0), result(1, 3, 2.0), result(2, None, 0.1)]
    assert exit_status(results) == 3 and best_of(results) is None and to_keep(results, "best") == []
    assert exit_status([result(0, None, 1.0)]) == 1


# -- what changed -----------------------------------------------------------------------------------------

BEGIN, MARK, LATER = (f"2026-01-01 00:00:0{n}.000000000 +0000" for n in (1, 5, 7))
FILE, DIRECTORY = "81a4", "41ed"


def line(sign: str, path: str, *, mode: str = FILE, size: int = 1, ctime: str = LATER) -> str:
    return f"{sign}{mode} 0 0 {size} 42 {LATER}|{ctime}|{path}"


def output(*lines: str, files: int = 100) -> bytes:
    return "\n".join([f"{BEGIN}|{MARK}|{files}|{files}", *lines, ""]).encode()


def test_added_changed_and_removed() -> None:
    found = changes.parse(
        output(
            line("+", "/new|with a bar"), line("-", "/gone"),
            line("-", "/etc/passwd", size=2), line("+", "/etc/passwd", size=3),
        )
    )  # fmt: skip
    assert found == Changes(("/new|with a bar",), ("/etc/passwd",), ("/gone",))
    assert found.count == 3


def test_a_directory_changes_by_its_mode_not_by_what_is_in_it() -> None:
    same = [line("-", "/a", mode=DIRECTORY, size=1), line("+", "/a", mode=DIRECTORY, size=2)]
    other = [line("-", "/b", mode=DIRECTORY), line("+", "/b", mode="41c0")]
    assert changes.parse(output(*same, *other)).changed == ("/b",)


def test_what_changed_before_the_command_began_is_not_its_doing() -> None:
    between = "2026-01-01 00:00:03.000000000 +0000"
    lines = [line("-", "/etc/hostname"), line("+", "/etc/hostname", ctime=between)]
    assert changes.parse(output(*lines)).count == 0
    # A clock that was set back makes no change disappear.
    earlier = "2020-01-01 00:00:00.000000000 +0000"
    assert changes.parse(output(line("+", "/new", ctime=earlier))).added == ("/new",)


def test_the_identity_of_a_fork_is_not_the_commands_doing_whatever_the_clock_says() -> None:
    old, new, own = (line("", "/etc/hosts", size=size) for size in (1, 2, 3))
    assert changes.parse(output("=" + new, "-" + old, "+" + new)).count == 0
    assert changes.parse(output("=" + new, "+" + new)).count == 0  # it was not there before
    assert changes.parse(output("=" + old)).count == 0  # as it always was
    assert changes.parse(output("=" + new, "-" + old, "+" + own)).changed == ("/etc/hosts",)
    assert changes.parse(output("=" + new, "-" + old)).removed == ("/etc/hosts",)


def test_a_list_that_was_cut_off_says_so_and_tells_no_removals() -> None:
    found = changes.parse(output(line("-", "/a"), line("+", "/b"), files=changes.MAX_FILES))
    assert found == Changes(("/b",), (), (), truncated=True)


@pytest.mark.parametrize("text", [b"", b"no\n", b"a|b|1|1\n+garbage\n", b"sh: stat: not found\n"])
def test_what_is_no_list_is_told(text: bytes) -> None:
    with pytest.raises(errors.Failed, match="did not list"):
        changes.parse(text)


@pytest.mark.parametrize("shell", [["sh"], ["busybox", "sh"]], ids=["coreutils", "busybox"])
def test_the_scripts_find_what_a_command_did(shell: list[str], tmp_path: Path) -> None:
    """On this host instead of in a guest, with one directory as its only file system."""
    if not shutil.which(shell[0]):
        pytest.skip(f"no {shell[0]}")
    root, mounts, place = tmp_path / "a disk", tmp_path / "mounts", tmp_path / "shm"
    root.mkdir()
    place.mkdir()
    for name in ("same", "grows", "goes", "mode"):
        (root / name).write_text("text")
    escaped = str(root).replace(" ", r"\040")
    mounts.write_text(
        f"proc /proc proc rw 0 0\nsysfs {tmp_path} sysfs rw 0 0\n/dev/vda {escaped} ext4 rw 0 0\n"
    )

    def sh(script: str, *words: str) -> bytes:
        script = script.replace("/proc/mounts", str(mounts)).replace("/dev/shm", str(place))
        return subprocess.run([*shell, "-c", script, *words], capture_output=True, check=True).stdout

    where = sh(changes.LIST, "sh", "token").decode().strip()
    assert Path(where).parent == place
    command = (
        f"cd '{root}' && echo more >>grows && rm goes && mkdir new && echo x >new/file && chmod 600 mode"
    )
    assert (
        sh(changes.RUN, f"{where}.mark", "sh", "-c", f"{command}; echo $0 $1", "one", "two") == b"one two\n"
    )
    found = changes.parse(sh(changes.COMPARE, "sh", where))
    names = [
        [str(Path(path).relative_to(root)) for path in paths]
        for paths in (found.added, found.changed, found.removed)
    ]
    assert names == [["new", "new/file"], ["grows", "mode"], ["goes"]]
    assert list(place.iterdir()) == []
    sh(changes.LIST, "sh", "token")
    sh(changes.FORGET, "sh", where)
    assert list(place.iterdir()) == []


# -- the command ------------------------------------------------------------------------------------------


class Daemon:
    """Answers for forks of `web`; a copy's command exits with its index."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.commands: list[dict[str, Any]] = []
        server.answer("POST", "/v1/holds", Body(b"held\n", chunked=True))
        server.answer("POST", "/v1/instances/web/fork", self.fork)
        server.answer("POST", "/v1/instances/.*/keep", lambda request: instance(request.path.split("/")[3]))
        server.answer("DELETE", "/v1/instances/.*", {"removed": "x"})
        server.on_socket("/v1/instances/.*/exec", self.exec)

    def fork(self, request: Request) -> dict[str, Any]:
        names = [f"web-{number + 1}" for number in range(request.json()["count"])]
        return {"instances": [instance(name) for name in names], "parent": "web", "pause_ms": 21.0}

    def exec(self, ws: FakeSocket) -> None:
        asked = json.loads(ws.receive() or "")
        script = asked["argv"][2] if asked["argv"][:2] == ["sh", "-c"] else ""
        if script == changes.LIST:
            ws.send(b"\x01/dev/shm/list\n")
        elif script == changes.COMPARE:
            ws.send(b"\x01" + output(line("+", "/new")))
        elif script != changes.FORGET:
            self.commands.append(asked)
            ws.send(b"\x01out ")
            ws.send(b"\x01put\nlast")
            ws.send(b"\x02err\n")
            ws.say({"exit_status": int(asked["env"]["TRY_INDEX"])})
            return
        ws.say({"exit_status": 0})

    def sent(self, method: str, end: str) -> list[str]:
        return sorted(
            one.path.split("/")[3]
            for one in self.server.requests
            if one.method == method and one.path.endswith(end)
        )


@pytest.fixture
def daemon(server: ApiServer) -> Daemon:
    return Daemon(server)


def test_try_streams_tells_and_removes(inn: Inn, daemon: Daemon) -> None:
    ran = inn("try", "web", "-n", "2", "--changes", "--", "make", "x")
    assert ran.status == 0
    assert sorted(ran.out.splitlines()[:4]) == [
        "web-1 | last",
        "web-1 | out put",
        "web-2 | last",
        "web-2 | out put",
    ]
    table = [row.split() for row in ran.out.splitlines()[4:7]]
    assert table[0] == ["COPY", "STATUS", "SECONDS", "FILES"]
    assert [(row[0], row[1], row[3]) for row in table[1:]] == [("web-1", "0", "1"), ("web-2", "1", "1")]
    assert ran.out.splitlines()[7:] == ["web-1 + /new", "web-2 + /new"]
    assert "web-1 | err\n" in ran.err and "stood still for 21 ms" in ran.err
    assert daemon.sent("DELETE", "") == ["web-1", "web-2"]
    body = daemon.server.sent("POST", "/v1/instances/web/fork")[0].json()
    assert (
        body["remove_when_ended"]
        and body["hold"] == daemon.server.sent("POST", "/v1/holds")[0].json()["token"]
    )
    asked = daemon.commands[0]["argv"]
    assert asked[:4] == ["sh", "-c", changes.RUN, "/dev/shm/list.mark"] and asked[4:] == ["make", "x"]


def test_try_with_json_and_keep(inn: Inn, daemon: Daemon) -> None:
    ran = inn("try", "web", "-n", "3", "--json", "--keep", "failed", "--no-changes", "--", "true")
    assert ran.err == "" and set(ran.json) == {
        "parent",
        "exit_status",
        "best",
        "pause_ms",
        "times_s",
        "results",
    }
    assert ran.json["best"] == "web-1"
    assert [one["kept"] for one in ran.json["results"]] == [False, True, True]
    assert {one["stdout"] for one in ran.json["results"]} == {"out put\nlast"}
    assert ran.json["results"][0]["changes"] is None and daemon.commands[0]["argv"] == ["true"]
    assert daemon.sent("DELETE", "") == ["web-1"] and daemon.sent("POST", "/keep") == ["web-2", "web-3"]


def test_the_best_gets_its_name_by_one_more_fork(inn: Inn, daemon: Daemon) -> None:
    daemon.server.answer(
        "POST", "/v1/instances/web-1/fork", {"instances": [instance("gold")], "pause_ms": 1.0}
    )
    daemon.server.answer("GET", "/v1/instances/gold", errors.NotFound("No instance named gold"))
    ran = inn("try", "web", "-n", "2", "-q", "--keep", "best", "--name", "gold", "--", "true")
    assert ran.status == 0 and "put" not in ran.out and "gold" in ran.out
    assert daemon.sent("DELETE", "") == ["web-1", "web-2"]
    daemon.server.answer("GET", "/v1/instances/gold", instance("gold"))
    assert inn("try", "web", "--keep", "best", "--name", "gold", "--", "true").status == 4
    assert inn("try", "web", "--name", "gold", "--", "true").status == 2


def test_a_command_for_each(inn: Inn, daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "each").write_text("# what to try\nmake one\n\nmake two\n")
    (tmp_path / "envs").write_text("A='x y' B=1\nA=z\n")
    ran = inn(
        "try", "web", "--each", str(tmp_path / "each"), "--env-each", str(tmp_path / "envs"), "--no-changes"
    )
    assert ran.status == 0
    by_index = sorted(daemon.commands, key=lambda one: one["env"]["TRY_INDEX"])
    assert [one["argv"] for one in by_index] == [["sh", "-c", "make one"], ["sh", "-c", "make two"]]
    assert by_index[0]["env"] == {"A": "x y", "B": "1", "TRY_INDEX": "0", "TRY_COUNT": "2"}
    assert inn("try", "web", "--each", str(tmp_path / "each"), "--", "true").status == 2
    assert inn("try", "web").status == 2
    assert inn("try", "web", "-n", "3", "--each", str(tmp_path / "each")).status == 2


def test_copies_are_removed_when_commands_cannot_run_or_we_are_interrupted(
    inn: Inn, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.server.on_socket(
        "/v1/instances/web-1/exec", lambda ws: ws.say({"error": errors.AgentMissing("No agent").to_dict()})
    )
    ran = inn("try", "web", "-n", "2", "--no-changes", "--", "true")
    assert ran.status == 1 and "inn: web-1: No agent" in ran.err
    assert daemon.sent("DELETE", "") == ["web-1", "web-2"]
    daemon.server.requests.clear()

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("innkeeper.client.try_.Trial._attempt", interrupted)
    assert inn("try", "web", "-n", "2", "--no-changes", "--", "true").status == 130
    assert daemon.sent("DELETE", "") == ["web-1", "web-2"]


def test_a_copy_that_cannot_be_removed_hides_no_result(inn: Inn, daemon: Daemon) -> None:
    daemon.server.answer("DELETE", "/v1/instances/web-1", errors.GuestTimeout("It takes too long"))
    daemon.server.answer("DELETE", "/v1/instances/web-2", errors.NotFound("It has shut down"))
    ran = inn("try", "web", "-n", "2", "-q", "--no-changes", "--", "poweroff")
    assert ran.status == 0 and "web-2  1" in ran.out and "inn: web-1: It takes too long" in ran.err


def test_a_vm_that_stands_still_is_listed_in_its_copies(inn: Inn, daemon: Daemon) -> None:
    daemon.server.on_socket(
        "/v1/instances/web/exec", lambda ws: ws.say({"error": errors.WrongState("off").to_dict()})
    )
    ran = inn("try", "web", "--json", "--", "true")
    assert ran.json["results"][0]["changes"]["added"] == ["/new"]
