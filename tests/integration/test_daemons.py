"""Daemons: as an ordinary user, side by side, started by the command line, over HTTP."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from innkeeper.errors import InnkeeperError
from vms import templates, traces
from vms.bootables import GREETING
from vms.cli import Inn, User
from vms.daemon import Daemon, short_directory
from vms.openapi import Api
from vms.waiting import eventually

pytestmark = pytest.mark.vm

Fresh = Callable[..., Daemon]
Spec = Callable[..., dict[str, Any]]


# -- session mode ------------------------------------------------------------------------------


def test_an_ordinary_user_runs_a_vm_with_one_command(
    ordinary_user: User, template_state: Path, boot_disk: Path
) -> None:
    """No root, no set-up, no daemon: that is started, and said once."""
    state = ordinary_user.home / ".local" / "share" / "innkeeper"
    state.mkdir(parents=True)
    templates.copy_state(template_state, state, owner=ordinary_user.uid)
    for place in (state.parent, state.parent.parent):
        os.chown(place, ordinary_user.uid, ordinary_user.uid)
    inn = Inn(None, user=ordinary_user)
    try:
        first = inn("run", "tiny", "--", "uname", "-s").ok()
        assert first.out == "Linux\n"
        assert (
            first.err.count("started the daemon in the background") == 1 and len(first.err.splitlines()) == 1
        )
        inn("run", "tiny", "-d", "--name", "mine").ok()
        second = inn("exec", "mine", "--", "id", "-u").ok()
        assert (second.out, second.err) == ("0\n", "")
        vm = inn("show", "mine", "--json").ok().json
        owner = Path(f"/proc/{vm['pid']}").stat().st_uid
        assert owner == ordinary_user.uid
        seccomp = [
            line for line in Path(f"/proc/{vm['pid']}/status").read_text().splitlines() if "Seccomp:" in line
        ]
        assert seccomp[0].split()[1] == "2"
        version = inn("version", "--json").ok().json
        assert "session" in json.dumps(version)
        inn("rm", "-f", "mine").ok()
        assert traces.complaints(state / "daemon.log") == []
    finally:
        inn("serve", "--stop")
    eventually(lambda: not traces.processes(f"HOME={ordinary_user.home}"), "all of it has ended", 10.0)


def test_a_user_can_have_daemons_with_their_own_state(
    ordinary_user: User, fresh: Fresh, boot_disks: dict[str, Path], tmp_path: Path
) -> None:
    daemon = fresh(user=ordinary_user)
    disk = daemon.state / "disk.img"
    disk.write_bytes(boot_disks["halt"].read_bytes())
    disk.chmod(0o644)
    daemon.inn("run", disk, "-d", "--memory", "16MiB", "--name", "mine").ok()
    eventually(lambda: GREETING in daemon.inn("logs", "mine").out, "it boots", 20.0)
    daemon.restart()
    assert daemon.status("mine")["state"] == "running"


# -- side by side, started by the command line -------------------------------------------------


def test_two_daemons_live_side_by_side(fresh: Fresh, small: Spec) -> None:
    one, two = fresh(), fresh()
    for daemon in (one, two):
        daemon.client.instances.create(small(), name="same", start=True, wait="running")
    assert one.show("same")["uid"] != two.show("same")["uid"]
    two.client.instances.handle("same").kill()
    assert one.status("same")["state"] == "running"
    one.restart()
    assert len(one.qemus()) == 1 and len(two.qemus()) == 0


def test_the_command_line_starts_a_daemon_once(bare_state: Path, tmp_path: Path) -> None:
    state = short_directory()
    templates.copy_state(bare_state, state)
    inn = Inn(state)
    begun = [
        inn.popen("list", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    answers = [process.communicate(timeout=60) for process in begun]
    try:
        assert [process.returncode for process in begun] == [0] * 4
        said = [err for _, err in answers if err]
        assert len(said) == 1 and b"started the daemon" in said[0], said
        assert str(state).encode() in said[0]
        assert inn("list").ok().err == ""
    finally:
        pid = inn("version", "--json").json
        assert inn("serve", "--stop").ok().out.startswith("stopped the daemon")
        inn("serve", "--stop").failed(3, "no daemon")
    assert pid
    assert not (state / "run" / "api.sock").exists()
    shutil.rmtree(state)


def _answering(daemon: Daemon) -> int:
    try:
        return int(daemon.client.version()["pid"])
    except InnkeeperError:
        return 0


def test_serve_in_the_foreground_ends_with_ctrl_c_and_leaves_vms_running(fresh: Fresh, small: Spec) -> None:
    daemon = fresh()
    daemon.client.instances.create(small(), name="vm", start=True, wait="running")
    daemon.stop()
    process = daemon.inn.popen(
        "serve", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    eventually(lambda: _answering(daemon) == process.pid, "it serves", 20.0)
    assert daemon.status("vm")["state"] == "running"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert len(daemon.qemus()) == 1


def test_a_daemon_that_listens_on_tcp_when_asked(fresh: Fresh) -> None:
    import socket
    import urllib.request

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    daemon = fresh(start=False)
    daemon.start("--tcp", f"127.0.0.1:{port}")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/version", timeout=10) as answer:
        assert json.load(answer)["pid"] == daemon.pid


# -- the HTTP API ------------------------------------------------------------------------------


def test_answers_are_as_the_openapi_document_says(daemon: Daemon, shared_vm: str, small: Spec) -> None:
    api = Api(daemon.paths.api_socket)
    status, version = api("GET", "/v1/version")
    assert (status, version["pid"], version["api"]) == (200, daemon.pid, 1)
    one = f"/v1/instances/{shared_vm}"
    for path in ("/v1/instances", one, f"{one}/argv", "/v1/images", "/v1/images/tiny", "/v1/host"):
        assert api("GET", path)[0] == 200, path
    assert api("GET", f"/v1/instances/{shared_vm}/logs")[0] == 200
    assert api("GET", f"/v1/instances/{shared_vm}/screenshot")[1].startswith(b"\x89PNG")
    body = {"name": "own", "spec": small(), "start": True, "wait": "running"}
    assert api("POST", "/v1/instances", body)[0] in (200, 201)
    try:
        assert api("POST", "/v1/instances", body)[0] == 409
        for verb in ("pause", "resume", "kill", "start"):
            status, vm = api("POST", f"/v1/instances/own/{verb}", {})
            assert status == 200 and vm["name"] == "own", verb
        assert api("GET", "/v1/instances/own/wait?for=running&timeout_s=5")[0] == 200
        assert api("PATCH", "/v1/instances/own", {"labels": {"a": "b"}})[0] == 200
        assert api("PUT", "/v1/instances/own", {"spec": small()})[0] == 200
        assert api("POST", "/v1/instances/own/stop", {"timeout_s": 0.1})[0] == 500
    finally:
        assert api("DELETE", "/v1/instances/own?force=true")[0] == 200
    for method, path, body_sent, expected in (
        ("GET", "/v1/instances/own", None, 404),
        ("POST", "/v1/instances", {"spec": {"colour": "red"}}, 400),
        ("POST", "/v1/instances", {"spec": {}, "surprise": 1}, 400),
        ("GET", "/v1/images/none", None, 404),
        ("POST", "/v1/instances/own/start", {}, 404),
    ):
        assert api(method, path, body_sent)[0] == expected, (method, path)


def test_bodies_that_are_no_json_are_told(daemon: Daemon) -> None:
    api = Api(daemon.paths.api_socket)
    for body in (b"{", b"\xff\xfe", b"[]", b"null"):
        status, _, content = api.raw("POST", "/v1/instances", body)
        assert status == 400, content
        assert "Traceback" not in content.decode()
    assert api.raw("GET", "/v1/nowhere")[0] == 404
    assert api.raw("DELETE", "/v1/version")[0] in (404, 405)
