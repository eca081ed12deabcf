"""Commands in the guest: what comes out, when, and what is left. The fake runs the real wrapper script
with this host's shell; `test_guest_real` repeats the main points in a real guest with busybox."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from guest_exec_play import execute, finish, leftovers, play, result_of

from fakes.qga import FakeQga
from helpers import run
from innkeeper.errors import BadRequest, Failed, Refused, Unsupported
from innkeeper.guest.agent import GuestAgent
from innkeeper.guest.exec import ExecRequest, open_exec
from innkeeper.guest.tail import Tail


def test_both_streams_and_the_status(tmp_path: Path) -> None:
    assert result_of(tmp_path, "sh", "-c", "echo out; echo err >&2; exit 3") == (3, b"out\n", b"err\n")


def test_a_short_command_takes_no_file_access(tmp_path: Path) -> None:
    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        assert await execute(agent, "true") == (0, b"", b"")
        assert set(fake.calls) == {"guest-sync-delimited", "guest-exec", "guest-exec-status"}

    play(tmp_path, scenario)


def test_argv_is_passed_exactly(tmp_path: Path) -> None:
    argv = ["a b", "", "*", "$HOME", "`id`", '"q"', "'", "\\", "-n", "--", "zeile\nzwei", "ä☃", "%s"]
    status, out, err = result_of(tmp_path, "printf", "<%s>", *argv)
    assert (status, out.decode(), err) == (0, "".join(f"<{one}>" for one in argv), b"")


def test_words_of_the_shell_are_not_run_as_such(tmp_path: Path) -> None:
    for word in ("cd", "exit", "pump", "export", "if"):
        if not any(os.access(f"{place}/{word}", os.X_OK) for place in os.environ["PATH"].split(":")):
            assert result_of(tmp_path, word)[0] == 127


def test_environment_directory_and_umask(tmp_path: Path) -> None:
    env = {"A": "x y\n'z' \"$HOME\" \\", "B": "", "PATH": os.environ["PATH"], "o": "kept"}
    script = 'printf "%s|" "$A" "${B-unset}" "$o" "$(pwd)" "$(umask)"; env | grep -c inn_'
    umask = os.umask(0o027)
    try:
        status, out, _ = result_of(tmp_path, "sh", "-c", script, env=env, cwd="/usr")
    finally:
        os.umask(umask)
    assert (status, out.decode()) == (1, f"{env['A']}||kept|/usr|0027|0\n")


def test_environment_names_that_a_shell_cannot_export(tmp_path: Path) -> None:
    assert b"\na.b=c d\n" in b"\n" + result_of(tmp_path, "env", env={"a.b": "c d", "E": "f"})[1]


def test_the_environment_is_not_in_anybodys_arguments(tmp_path: Path) -> None:
    _, out, _ = result_of(tmp_path, "sh", "-c", "cat /proc/[0-9]*/cmdline", env={"S": "geheim" + "nis"})
    assert b"innkeeper-exec" in out and b"geheimnis" not in out


def test_only_the_standard_descriptors_are_open(tmp_path: Path) -> None:
    for stdin in (None, b""):
        _, out, _ = result_of(tmp_path, "ls", "/proc/self/fd", stdin=stdin)
        assert out.split() == [b"0", b"1", b"2", b"3"]  # 3 is the directory ls reads


def test_commands_that_cannot_run(tmp_path: Path) -> None:
    for argv, status, words in (
        (["no-such-command"], 127, b"not found"),
        (["/no/such/command"], 127, b"not found"),
        (["/etc/passwd"], 126, b"ermission denied"),
        (["/etc"], 126, b"ermission denied"),
    ):
        got, out, err = result_of(tmp_path, *argv)
        assert (got, out) == (status, b"") and words in err and argv[0].encode() in err
    got, _, err = result_of(tmp_path, "true", cwd="/no/such/place")
    assert (got, err) == (126, b"sh: cannot change to /no/such/place\n")


def test_a_missing_command_is_told_as_a_shell_would(tmp_path: Path) -> None:
    for command in ("no-such-command", "/no/such/command"):
        assert result_of(tmp_path, command) == (127, b"", f"sh: {command}: not found\n".encode())
    assert result_of(tmp_path, "/etc")[2] == b"sh: /etc: Permission denied\n"
    # with the PATH that was asked for
    assert result_of(tmp_path, "ls", env={"PATH": "/no/such"}) == (127, b"", b"sh: ls: not found\n")


@pytest.mark.parametrize("number", [9, 15, 2, 13])
def test_a_signal_gives_128_and_its_number(tmp_path: Path, number: int) -> None:
    assert result_of(tmp_path, "sh", "-c", f"echo a; kill -{number} $$")[:2] == (128 + number, b"a\n")
    script = f"sleep 0.2; echo a; sleep 0.1; kill -{number} $$"
    assert result_of(tmp_path, "sh", "-c", script) == (128 + number, b"a\n", b"")


def test_a_command_that_ends_its_own_process_group(tmp_path: Path) -> None:
    for pause in ("0.05", "0.3"):
        script = f"echo a; sleep {pause}; kill -9 0"
        assert result_of(tmp_path, "sh", "-c", script) == (137, b"a\n", b"")


def test_output_comes_while_the_command_runs(tmp_path: Path) -> None:
    async def scenario(_: FakeQga, agent: GuestAgent) -> None:
        script = "echo one; sleep 0.4; echo two >&2; sleep 0.4; printf three; sleep 0.4"
        start = time.monotonic()
        seen = []
        session = await open_exec(agent, ExecRequest(["sh", "-c", script]))
        async for stream, data in session:
            seen.append((stream, data, time.monotonic() - start))
        assert [one[:2] for one in seen] == [(1, b"one\n"), (2, b"two\n"), (1, b"three")]
        for (_, _, at), expected in zip(seen, (0, 0.4, 0.8), strict=True):
            assert at < expected + 0.35
        assert await session.wait() == 0

    play(tmp_path, scenario)


def test_large_output_arrives_whole(tmp_path: Path) -> None:
    script = "seq 1 1500000; echo end >&2; exit 5"  # 10.4 MiB: many segments
    status, out, err = result_of(tmp_path, "sh", "-c", script)
    assert (status, err) == (5, b"end\n")
    assert out == b"".join(b"%d\n" % n for n in range(1, 1500001))


def test_many_small_writes_arrive_whole(tmp_path: Path) -> None:
    step = "i=$((i+1)); echo $i; echo $i >&2; [ $((i%40)) != 0 ] || sleep 0.03"
    script = f"i=0; while [ $i -lt 600 ]; do {step}; done"
    status, out, err = result_of(tmp_path, "sh", "-c", script)
    assert status == 0
    assert out == err == b"".join(b"%d\n" % n for n in range(1, 601))


def test_a_command_that_never_stops_is_held_up_and_can_be_cancelled(tmp_path: Path) -> None:
    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        async with await open_exec(agent, ExecRequest(["yes"])) as session:
            async for _ in session:
                break
            await asyncio.sleep(0.3)
            stored = sum(one.stat().st_size for one in leftovers(fake))
            assert 1 << 20 <= stored <= 4 << 20

    play(tmp_path, scenario)


def test_endless_output_does_not_hide_the_other_stream(tmp_path: Path) -> None:
    async def scenario(_: FakeQga, agent: GuestAgent) -> None:
        request = ExecRequest(["sh", "-c", "yes & sleep 0.3; echo here >&2; wait"])
        async with asyncio.timeout(10), await open_exec(agent, request) as session:
            async for stream, data in session:
                if stream == 2:
                    assert data == b"here\n"
                    break

    play(tmp_path, scenario)


def test_stdin_arrives_whole(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8 * 1024 + b"odd"
    status, out, _ = result_of(tmp_path, "md5sum", stdin=data)
    assert (status, out.split()[0].decode()) == (0, hashlib.md5(data).hexdigest())
    assert result_of(tmp_path, "cat", stdin=data) == (0, data, b"")
    assert result_of(tmp_path, "cat", stdin=b"") == (0, b"", b"")


def test_stdin_that_is_not_read_stops_nobody(tmp_path: Path) -> None:
    assert result_of(tmp_path, "true", stdin=b"x" * 3_000_000) == (0, b"", b"")
    assert result_of(tmp_path, "head", "-c", "5", stdin=b"x" * 3_000_000) == (0, b"xxxxx", b"")
    script = "exec <&-; sleep 0.5; echo done"
    assert result_of(tmp_path, "sh", "-c", script, stdin=b"x" * 3_000_000) == (0, b"done\n", b"")


def test_a_dialogue(tmp_path: Path) -> None:
    async def scenario(_: FakeQga, agent: GuestAgent) -> None:
        script = 'while read -r line; do echo "<$line>"; done; echo end'
        session = await open_exec(agent, ExecRequest(["sh", "-c", script], stdin=True))
        output = aiter(session)
        for word in (b"one", b"two", b"three"):
            await session.write(word + b"\n")
            assert await anext(output) == (1, b"<" + word + b">\n")
        await session.close_stdin()
        await session.close_stdin()
        assert [data async for _, data in output] == [b"end\n"]
        assert await session.wait() == 0
        with pytest.raises(BadRequest):
            await session.write(b"more")

    play(tmp_path, scenario)


def test_without_stdin_the_command_reads_end_of_file(tmp_path: Path) -> None:
    assert result_of(tmp_path, "cat") == (0, b"", b"")

    async def scenario(_: FakeQga, agent: GuestAgent) -> None:
        session = await open_exec(agent, ExecRequest(["true"]))
        with pytest.raises(BadRequest):
            await session.write(b"x")
        await session.close_stdin()
        assert await session.wait() == 0

    play(tmp_path, scenario)


def test_what_a_command_leaves_running_holds_up_nobody_and_lives_on(tmp_path: Path) -> None:
    for stdin in (None, b"x" * 100_000):
        status, out, _ = result_of(tmp_path, "sh", "-c", "sleep 600 & echo $!; exit 4", stdin=stdin)
        # We are here before it ended: nobody waited for it. And it is ours to end, so it lives.
        state = Path(f"/proc/{int(out)}/stat").read_text().rpartition(") ")[2][0]
        os.kill(int(out), 15)
        assert (status, state) == (4, "S")


def test_several_commands_at_once(tmp_path: Path) -> None:
    async def scenario(_: FakeQga, agent: GuestAgent) -> None:
        results = await asyncio.gather(
            *(execute(agent, "sh", "-c", f"sleep 0.2; cat; exit {n}", stdin=b"%d" % n) for n in range(6))
        )
        assert results == [(n, b"%d" % n, b"") for n in range(6)]

    play(tmp_path, scenario)


def test_waiting_without_reading_throws_output_away(tmp_path: Path) -> None:
    async def scenario(_: FakeQga, agent: GuestAgent) -> None:
        session = await open_exec(agent, ExecRequest(["sh", "-c", "seq 1 1000000; exit 6"]))
        assert await session.wait() == 6

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "request_",
    [
        ExecRequest([]),
        ExecRequest([""]),
        ExecRequest(["a\0b"]),
        ExecRequest(["a"], env={"A=B": "c"}),
        ExecRequest(["a"], env={"": "c"}),
        ExecRequest(["a"], env={"A": "\0"}),
        ExecRequest(["a"], cwd="/\0"),
    ],
)
def test_bad_requests(tmp_path: Path, request_: ExecRequest) -> None:
    with pytest.raises(BadRequest):
        run(open_exec(GuestAgent(tmp_path / "none"), request_))


def test_agent_without_guest_exec(tmp_path: Path) -> None:
    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        fake.disabled.add("guest-exec")
        with pytest.raises(Unsupported, match="guest-exec"):
            await open_exec(agent, ExecRequest(["true"]))

    play(tmp_path, scenario)


# -- a guest without a shell ---------------------------------------------------------------------------

WINDOWS = {"printf": "/usr/bin/printf", "cat": "/bin/cat", "env": "/usr/bin/env", "sleep": "/bin/sleep"}


def test_without_a_shell(tmp_path: Path) -> None:
    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        assert await execute(agent, "printf", "%s|", "a b") == (0, b"a b|", b"")
        assert await execute(agent, "cat", stdin=b"x" * 200_000) == (0, b"x" * 200_000, b"")
        assert await execute(agent, "env", env={"A": "b"}) == (0, b"A=b\n", b"")
        status, _, err = await execute(agent, "no-such-command")
        assert status == 127 and b"no-such-command" in err
        with pytest.raises(Unsupported, match="directory"):
            await open_exec(agent, ExecRequest(["cat"], cwd="/"))
        session = await open_exec(agent, ExecRequest(["cat"], stdin=True))
        with pytest.raises(Refused):
            await session.write(b"x" * 9_000_000)
        await session.cancel()
        fake.faults["guest-exec-status"].append(
            json.dumps({"return": {"exited": True, "exitcode": 1 << 31, "out-truncated": True}}).encode()
            + b"\n"
        )
        session = await open_exec(agent, ExecRequest(["env"]))
        status, _, err = await finish(session)
        assert status == 255 and b"16 MiB" in err
        await fake.forget_children()
        async with await open_exec(agent, ExecRequest(["sleep", "0.1"])) as session:
            reading = asyncio.create_task(finish(session))
            await asyncio.sleep(0.02)
        with pytest.raises(Failed, match="cancelled"):
            await reading
        await fake.forget_children()

    play(tmp_path, scenario, programs=WINDOWS)


# -- the rest at the end, against a guest that invents it ----------------------------------------------


@pytest.mark.parametrize(
    "captured, expected",
    [
        (b"0\nhello", b"hello"),
        (b"0\n", b""),
        (b"", b""),
        (b"hello", b"hello"),
        (b"no number\nx", b"no number\nx"),
        (b"9" * 5000 + b"\nx", b"9" * 5000 + b"\nx"),
    ],
)
def test_rest_of_a_stream_that_was_not_tailed(tmp_path: Path, captured: bytes, expected: bytes) -> None:
    assert Tail(GuestAgent(tmp_path / "none"), "o").rest(captured) == expected


def test_rest_that_leaves_a_gap_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="lost"):
        Tail(GuestAgent(tmp_path / "none"), "o").rest(b"1\nx")
