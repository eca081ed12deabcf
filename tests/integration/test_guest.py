"""What works inside a guest: commands, files, console, logs, screen. All on one VM, left as it was."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import zlib
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest

from vms.cli import Inn
from vms.daemon import Daemon
from vms.terminal import CTRL_BRACKET, Terminal
from vms.waiting import eventually

pytestmark = pytest.mark.vm


# -- exec -----------------------------------------------------------------------------------------------


def test_exec_gives_output_errors_and_status(inn: Inn, shared_vm: str) -> None:
    answer = inn("exec", shared_vm, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (answer.status, answer.out, answer.err) == (7, "out\n", "err\n")
    assert inn("exec", shared_vm, "true").ok().out == ""
    assert inn("exec", shared_vm, "--", "sh", "-c", "kill -9 $$").status == 128 + 9


def test_exec_of_what_is_not_there_is_127(inn: Inn, shared_vm: str) -> None:
    answer = inn("exec", shared_vm, "--", "no-such-command")
    assert answer.status == 127


def test_exec_passes_arguments_and_environment_as_they_are(inn: Inn, shared_vm: str) -> None:
    words = ["", "a b", "$HOME", "'", '"', "*", "ü", "-n", "line\nbreak"]
    script = 'for word; do printf "<%s>" "$word"; done; printf "%s" "$GREETING"'
    answer = inn(
        "exec", shared_vm, "--env", "GREETING=it's $me", "--", "sh", "-c", script, "sh", *words
    ).ok()  # fmt: skip
    assert answer.out == "".join(f"<{word}>" for word in words) + "it's $me"


def test_exec_streams_a_mebibyte_in_and_out(inn: Inn, shared_vm: str) -> None:
    data = os.urandom(1 << 20)
    answer = inn("exec", shared_vm, "--", "cat", stdin=data).ok()
    assert hashlib.sha256(answer.stdout).digest() == hashlib.sha256(data).digest()


def test_exec_shows_output_as_it_comes(inn: Inn, shared_vm: str) -> None:
    script = "echo first; read line; echo got $line"
    process = inn.popen("exec", shared_vm, "--", "sh", "-c", script, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    assert process.stdout and process.stdin
    assert process.stdout.readline() == b"first\n"
    process.stdin.write(b"second\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"got second\n"
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, b"", b"")


def test_exec_ends_the_command_with_ctrl_c_and_at_its_time(inn: Inn, shared_vm: str) -> None:
    inn("exec", shared_vm, "--timeout", "500ms", "--", "sleep", "4321").failed(1, "did not end within 0.5 s")
    process = inn.popen(
        "exec", shared_vm, "--", "sh", "-c", "echo on; exec sleep 4321",
        stdin=DEVNULL, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == b"on\n"
    process.send_signal(2)
    process.communicate(timeout=20)
    assert process.returncode == 130
    eventually(
        lambda: inn("exec", shared_vm, "--", "pidof", "sleep").status == 1,
        "no sleep is left in the guest",
        10.0,
    )


def test_exec_side_by_side(inn: Inn, shared_vm: str) -> None:
    begun = [
        inn.popen(
            "exec", shared_vm, "--", "sh", "-c", f"echo {number}; sleep 0.3", stdin=DEVNULL, stdout=PIPE
        )
        for number in range(4)
    ]
    for number, process in enumerate(begun):
        out, _ = process.communicate(timeout=30)
        assert (process.returncode, out) == (0, f"{number}\n".encode())


def test_exec_without_agent_is_told(inn: Inn, daemon: Daemon, started: str) -> None:
    answer = inn("exec", started, "--", "true")
    if answer.status:  # it may have booted already
        answer.failed(1, "agent", f"inn console {started}")


# -- cp -------------------------------------------------------------------------------------------------


def test_cp_a_file_both_ways_with_its_mode(inn: Inn, shared_vm: str, tmp_path: Path) -> None:
    source = tmp_path / "a file.bin"
    source.write_bytes(os.urandom(300_001))
    source.chmod(0o750)
    inn("cp", source, f"{shared_vm}:/tmp/").ok()
    assert inn("exec", shared_vm, "--", "stat", "-c", "%a %s", "/tmp/a file.bin").ok().out == "750 300001\n"
    back = tmp_path / "back"
    inn("cp", f"{shared_vm}:/tmp/a file.bin", back).ok()
    assert back.read_bytes() == source.read_bytes() and back.stat().st_mode & 0o777 == 0o750
    assert inn("cp", f"{shared_vm}:/tmp/a file.bin", "-").ok().stdout == source.read_bytes()
    inn("exec", shared_vm, "--", "rm", "/tmp/a file.bin").ok()


def test_cp_a_directory_both_ways(inn: Inn, shared_vm: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "empty").mkdir()
    (tree / "sub" / "file").write_text("text")
    (tree / "link").symlink_to("sub/file")
    inn("cp", tree, f"{shared_vm}:/tmp/copied").ok()
    inn("cp", f"{shared_vm}:/tmp/copied", tmp_path / "back").ok()
    found = {str(path.relative_to(tmp_path / "back")) for path in (tmp_path / "back").rglob("*")}
    assert found == {"sub", "sub/file", "empty", "link"}
    assert (tmp_path / "back" / "sub" / "file").read_text() == "text"
    assert os.readlink(tmp_path / "back" / "link") == "sub/file"
    inn("exec", shared_vm, "--", "rm", "-r", "/tmp/copied").ok()


def test_cp_of_what_is_not_there_is_told(inn: Inn, shared_vm: str, tmp_path: Path) -> None:
    inn("cp", tmp_path / "none", f"{shared_vm}:/tmp/").failed(3, "none")
    inn("cp", f"{shared_vm}:/nowhere", tmp_path / "x").failed(3, "/nowhere")
    inn("cp", "a", "b").failed(2, "guest")
    file = tmp_path / "file"
    file.write_text("x")
    inn("cp", file, f"{shared_vm}:/proc/nowhere/file").failed(3, "directory")
    assert not (tmp_path / "x").exists()


# -- console, logs ----------------------------------------------------------------------------------------


def test_two_viewers_see_the_same_console(inn: Inn, shared_vm: str) -> None:
    with Terminal(inn, ["console", shared_vm]) as one, Terminal(inn, ["console", shared_vm]) as two:
        one.expect(b"attached to shared")
        two.expect(b"attached to shared")
        one.type(b"\recho one-$((1 + 1))\r")
        one.expect(b"one-2")
        two.expect(b"one-2")
        two.type(b"echo two-$((2 + 2))\r")
        one.expect(b"two-4")
        two.expect(b"two-4")
        one.type(CTRL_BRACKET)
        assert one.left() == 0
        two.type(b"echo three-$((3 + 3))\r")
        two.expect(b"three-6")
        two.type(CTRL_BRACKET)
        assert two.left() == 0
    with Terminal(inn, ["console", shared_vm]) as three:
        three.expect(b"three-6")  # what was said last is shown first
        three.type(CTRL_BRACKET)
        assert three.left() == 0


def test_ctrl_c_in_the_console_goes_to_the_guest(inn: Inn, shared_vm: str) -> None:
    with Terminal(inn, ["console", shared_vm, "--escape", "^a"]) as terminal:
        terminal.expect(b"^a detaches")
        terminal.type(b"\rsleep 5432\r")
        terminal.expect(b"sleep 5432")
        # Until it runs, ctrl-C is the shell's, which takes no notice.
        eventually(lambda: inn("exec", shared_vm, "--", "pidof", "sleep").status == 0, "it sleeps", 20.0)
        terminal.type(b"\x03")
        terminal.type(b"echo after-$((4 + 4))\r")
        terminal.expect(b"after-8")
        terminal.type(b"\x01")
        assert terminal.left() == 0


def test_the_console_of_a_vm_that_ends_ends(inn: Inn, daemon: Daemon, ready: str) -> None:
    with Terminal(inn, ["console", ready]) as terminal:
        terminal.expect(b"attached")
        terminal.type(b"\rpoweroff\r")
        terminal.expect(b"ended", 30.0)
        assert terminal.left() == 0
    daemon.watch(ready, lambda vm: vm["state"] == "stopped", "is stopped")
    assert daemon.status(ready)["ended"]["reason"] == "guest-shutdown"


def test_the_console_with_piped_input(inn: Inn, shared_vm: str) -> None:
    script = b"\recho piped-$((5 + 5))\r"
    answer = inn("console", shared_vm, "--timeout", "2s", stdin=script)
    assert answer.status == 0 and b"piped-10" in answer.stdout


def test_logs_keep_the_serial_output(inn: Inn, shared_vm: str) -> None:
    assert inn("exec", shared_vm, "--", "sh", "-c", "echo logged-$((6 + 6)) >/dev/ttyS0").status == 0
    eventually(lambda: "logged-12" in inn("logs", shared_vm).ok().out, "it is in the log")
    assert len(inn("logs", shared_vm, "-n", "1").ok().out.splitlines()) == 1
    follower = inn.popen("logs", shared_vm, "-f", "-n", "0", stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    assert follower.stdout
    writer = inn.popen(
        "exec", shared_vm, "--", "sh", "-c", "while :; do echo tick >/dev/ttyS0; usleep 100000; done",
        stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL,
    )  # fmt: skip
    assert b"tick" in follower.stdout.readline()
    for process in (writer, follower):
        process.send_signal(2)
        process.communicate(timeout=20)
    assert inn("logs", shared_vm, "--source", "qemu").ok().status == 0


# -- screen ---------------------------------------------------------------------------------------------


def test_a_screenshot_is_a_picture(inn: Inn, shared_vm: str, tmp_path: Path) -> None:
    file = tmp_path / "screen.png"
    assert inn("screenshot", shared_vm, "-o", file).ok().out == f"{file}\n"
    width, height, colours = decode_png(file.read_bytes())
    assert (width, height) >= (640, 350) and colours > 1
    assert inn("screenshot", shared_vm, "-o", "-").ok().stdout.startswith(b"\x89PNG")


def decode_png(data: bytes) -> tuple[int, int, int]:
    """Width, height and the number of different bytes of the picture; every checksum is verified."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, pixels, size = 8, b"", (0, 0)
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        assert checksum == zlib.crc32(kind + body)
        if kind == b"IHDR":
            size = struct.unpack(">II", body[:8])
        pixels += body if kind == b"IDAT" else b""
        at += 12 + length
    return size[0], size[1], len(set(zlib.decompress(pixels)))


def test_random_numbers_disks_and_agent_are_there(inn: Inn, shared_vm: str) -> None:
    script = "cat /sys/class/misc/hw_random/rng_current; ls /dev/virtio-ports; cat /proc/cmdline"
    answer = inn("exec", shared_vm, "--", "sh", "-c", script).ok().out
    assert "virtio_rng" in answer and "org.qemu.guest_agent.0" in answer and "console=ttyS0" in answer


def test_the_command_line_stays_quick_beside_a_long_exec(inn: Inn, shared_vm: str) -> None:
    process = inn.popen("exec", shared_vm, "--", "sleep", "1", stdin=DEVNULL)
    for _ in range(3):
        inn("list").ok()
    assert process.wait(20) == 0
    assert isinstance(process, subprocess.Popen)
