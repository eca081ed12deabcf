"""What verbs ask of the daemon, print, and exit with."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from cli_harness import Inn, inn, server

from fakes.api_server import ApiServer, Body, FakeSocket, instance
from innkeeper import errors
from innkeeper.cli.output import age, clean

__all__ = ["inn", "server"]  # fixtures

LIST_KEYS = {
    "name", "uid", "state", "ready", "accelerator", "pid", "host", "image", "cpus", "memory",
    "addresses", "created_at", "started_at", "note",
}  # fmt: skip


def test_list(inn: Inn, server: ApiServer) -> None:
    many = [
        instance("a-long-name", addresses=["10.0.2.15", "fe80::1"], created_at=time.time() - 7200),
        instance("b", state="stopped", ready=False, accelerator="", addresses=[], image=""),
        instance("evil", addresses=["\x1b]0;x\x07"]),
    ]
    server.answer("GET", "/v1/instances", {"instances": many})
    lines = inn("list").out.splitlines()
    assert lines[0].split() == [
        "NAME",
        "STATE",
        "READY",
        "ACCEL",
        "CPUS",
        "MEMORY",
        "IMAGE",
        "ADDRESS",
        "AGE",
    ]
    assert lines[1].split() == [
        "a-long-name",
        "running",
        "yes",
        "tcg",
        "1",
        "256",
        "MiB",
        "tiny",
        "10.0.2.15,",
        "fe80::1",
        "2h",
    ]
    assert lines[2].split()[:4] == ["b", "stopped", "no", "-"]
    assert "\x1b" not in lines[3] and "\\x1b]0;x\\x07" in lines[3]
    assert lines[0].index("STATE") == lines[1].index("running")
    assert inn("list", "-q", "--state", "stopped").out == "b\n"
    assert [set(one) for one in inn("list", "--json").json] == [LIST_KEYS] * 3


def test_list_of_nothing(inn: Inn, server: ApiServer) -> None:
    server.answer("GET", "/v1/instances", {"instances": []})
    assert inn("list").out.split()[0] == "NAME"
    assert inn("list", "--json").json == []
    assert inn("list", "-q").out == ""


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "pause", "resume", "kill"])
def test_lifecycle(inn: Inn, server: ApiServer, verb: str) -> None:
    server.answer("POST", f"/v1/instances/.*/{verb}", lambda request: instance(request.path.split("/")[3]))
    assert inn(verb, "web").out == "web\n"
    assert inn(verb, "web", "--json").json["name"] == "web"
    assert [one["name"] for one in inn(verb, "web", "db", "--json").json] == ["web", "db"]


def test_options_of_lifecycle_verbs(inn: Inn, server: ApiServer) -> None:
    server.answer("POST", "/v1/instances/web/.*", instance("web"))
    inn("stop", "web", "--timeout", "2m")
    inn("start", "web", "--wait", "ready")
    inn("kill", "web")
    assert [one.json() for one in server.requests] == [{"timeout_s": 120.0}, {"wait": "ready"}, {}]


def test_several_names_are_each_tried(inn: Inn, server: ApiServer) -> None:
    server.answer("POST", "/v1/instances/.*/stop", lambda request: instance(request.path.split("/")[3]))
    server.answer("POST", "/v1/instances/b/stop", errors.NotFound("No instance is named b"))
    ran = inn("stop", "a", "b", "c")
    assert (ran.status, ran.out, ran.err) == (3, "a\nc\n", "inn: No instance is named b\n")
    ran = inn("stop", "a", "b", "--json")
    assert ran.json[1] == {"name": "b", "error": errors.NotFound("No instance is named b").to_dict()}


def test_rm(inn: Inn, server: ApiServer) -> None:
    server.answer("DELETE", "/v1/instances/web", {"removed": "web"})
    assert inn("rm", "-f", "web", "--json").json == {"name": "web", "removed": True}
    assert server.requests[-1].query == {"force": "true"}
    inn("rm", "web")
    assert server.requests[-1].query == {"force": "false"}


def test_wait(inn: Inn, server: ApiServer) -> None:
    server.answer("GET", "/v1/instances/web/wait", instance("web"))
    assert inn("wait", "web", "--for", "stopped", "--timeout", "5s").out == ""
    assert server.requests[-1].query == {"for": "stopped", "timeout_s": "5.0"}


CPU_QOS = {
    "shares": 4000,
    "reservation": "500m",
    "limit": "1.5",
    "entitlement": 0.75,
    "not_in_force": "",
}
SPEC = {
    "image": "tiny",
    "machine": {"type": "pc-q35-7.2", "firmware": "bios", "accelerator": "auto"},
    "cpu": {"count": 2, "model": "auto"},
    "memory": {"size": "256MiB"},
    "labels": {"owner": "anna"},
    "user_data": "#cloud-config\nfoo: on\n",
    "networks": [{"mode": "user", "model": "virtio", "mac": "52:54:00:12:34:56",
                  "forward": [{"protocol": "tcp", "address": "127.0.0.1", "host": 2222, "guest": 22}]}],
}  # fmt: skip
STATUS = {"accelerator_reason": "KVM is emulated", "machine": "pc-q35-7.2", "qemu": "7.2.1",
          "times_ms": {"spawn": 35.2}, "started_at": 1.7e9, "ended": None, "failure": None}  # fmt: skip


@pytest.fixture
def web(server: ApiServer) -> None:
    full = instance("web", spec=SPEC, status=STATUS, wanted={}, paths={"state": "/s/web", "run": "/r"})
    server.answer("GET", "/v1/instances/web", full)
    server.answer("GET", "/v1/instances/web/qos", {"cpu": CPU_QOS})


@pytest.mark.usefixtures("web")
def test_show(inn: Inn) -> None:
    out = inn("show", "web").out
    for part in ("running, ready", "tcg (KVM is emulated)", "pc-q35-7.2 (QEMU 7.2.1)", "256 MiB",
                 "127.0.0.1:2222 -> 22/tcp", "spawn 35 ms", "/s/web", "owner=anna",
                 "4000 shares, 500m reserved, at most 1.5, 0.75 of the host when all are busy"):  # fmt: skip
        assert part in out
    assert inn("show", "web", "--json").json["qos"] == {"cpu": CPU_QOS}
    assert inn("show", "web", "--json").json["spec"] == SPEC


@pytest.mark.usefixtures("web")
def test_show_yaml_goes_through_apply_unchanged(inn: Inn, server: ApiServer, tmp_path: Path) -> None:
    ran = inn("show", "web", "--yaml")
    assert ran.out.startswith("kind: instance\nname: web\nspec:\n  image: tiny\n")
    assert "type: pc-q35-7.2" in ran.out, "what was pinned stays"
    assert "firmware" not in ran.out and "memory" not in ran.out, "defaults are left out"
    assert "user_data: |" in ran.out
    file = tmp_path / "web.yaml"
    file.write_text(ran.out)
    server.answer("PUT", "/v1/instances/web", {"instance": {}, "changed": [], "needs_restart": []})
    assert inn("apply", "-f", str(file)).out == "web: unchanged\n"
    sent = server.requests[-1].json()["spec"]
    from innkeeper.spec.instance import InstanceSpec

    assert InstanceSpec.model_validate(sent) == InstanceSpec.model_validate(SPEC)
    assert inn("diff", "-f", str(file), "--exit-code").out == ""


def test_show_argv_can_be_pasted(inn: Inn, server: ApiServer) -> None:
    import shlex

    argv = ["qemu-system-x86_64", "-name", "it's", '{"a": "$HOME"}']
    server.answer("GET", "/v1/instances/web/argv", {"argv": argv})
    assert shlex.split(inn("show", "web", "--argv").out) == argv
    assert inn("show", "web", "--argv", "--json").json == {"name": "web", "argv": argv}


def test_logs(inn: Inn, server: ApiServer) -> None:
    server.answer("GET", "/v1/instances/web/logs", Body(b"one\r\ntwo\xff\r\nthree\r\n", chunked=True))
    assert inn("logs", "web").out == "one\r\ntwo�\r\nthree\r\n"
    assert inn("logs", "web", "-n", "1", "--source", "qemu").out == "three\r\n"
    assert server.requests[-1].query["source"] == "qemu"
    assert inn("logs", "web", "-n", "0").out == ""
    assert inn("logs", "web", "--json").json["text"].endswith("three\r\n")
    assert inn("logs", "-f", "web").out.startswith("one")
    assert server.requests[-1].query["follow"] == "true"


def test_screenshot(inn: Inn, server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    server.answer("GET", "/v1/instances/web/screenshot", Body(b"\x89PNG", "image/png"))
    assert inn("screenshot", "web").out == "web.png\n"
    assert (tmp_path / "web.png").read_bytes() == b"\x89PNG"
    assert "PNG" in inn("screenshot", "web", "-o", "-").out
    assert inn("screenshot", "web", "--json").json["bytes"] == 4
    assert inn("screenshot", "web", "-o", "/nowhere/x.png").err == (
        "inn: /nowhere/x.png: No such file or directory\n"
    )


def talk(ws: FakeSocket) -> None:
    asked = json.loads(ws.receive() or "")
    text = b""
    while asked["stdin"] and isinstance(message := ws.receive(), bytes):
        text += message
    ws.send(b"\x01" + json.dumps([asked["argv"], text.decode(), asked["env"]]).encode())
    ws.send(b"\x02oops\n")
    ws.say({"exit_status": 42})


@pytest.mark.parametrize(
    ("args", "argv"),
    [
        (["web", "--", "ls", "-l", "--json"], ["ls", "-l", "--json"]),
        (["web", "ls", "-l"], ["ls", "-l"]),
        (["--env", "A=b", "web", "ls", "--env"], ["ls", "--env"]),
        (["web", "--env", "A=b", "--", "--x"], ["--x"]),
    ],
)
def test_exec(inn: Inn, server: ApiServer, args: list[str], argv: list[str]) -> None:
    server.on_socket("/v1/instances/web/exec", talk)
    ran = inn("exec", *args, stdin=b"input")
    env = {"A": "b"} if "A=b" in args else {}
    assert (ran.status, json.loads(ran.out), ran.err) == (42, [argv, "input", env], "oops\n")


def test_exec_json(inn: Inn, server: ApiServer) -> None:
    server.on_socket("/v1/instances/web/exec", talk)
    ran = inn("exec", "web", "--json", "--", "ls")
    assert ran.status == 42
    assert set(ran.json) == {"name", "exit_status", "stdout", "stderr"}
    assert ran.json["stderr"] == "oops\n"


def test_console_through_pipes(inn: Inn, server: ApiServer) -> None:
    def answer(ws: FakeSocket) -> None:
        typed = ws.receive()
        assert isinstance(typed, bytes)
        ws.send(b"you said " + typed)
        ws.say({"ended": True})

    server.on_socket("/v1/instances/web/console", answer)
    ran = inn("console", "web", stdin=b"hi\n")
    assert (ran.status, ran.out, ran.err) == (0, "you said hi\n", "")


def test_host_and_doctor(inn: Inn, server: ApiServer) -> None:
    pools = [{"page_bytes": 2 << 20, "total": 8, "free": 5, "reserved": 1}]
    nodes = [
        {"id": 0, "cpus": [0, 1, 2, 5], "memory_bytes": 4 << 30, "hugepages": pools, "distances": [10, 21]},
        {"id": 1, "cpus": [], "memory_bytes": 2 << 30, "distances": [21, 10]},
    ]
    facts = {
        "cpus": 2,
        "memory_bytes": 8 << 30,
        "cpu_ids": [0, 1, 4],
        "qemu": "/usr/bin/qemu-system-x86_64",
        "machine_types": ["pc-q35-7.2", "microvm"],
        "machine_aliases": {"q35": "pc-q35-7.2"},
        "foreign": {"aarch64": {"qemu_version": "7.2", "machine_types": ["virt-7.2"]}},
        "numa": nodes,
        "extra": {},
    }
    server.answer("GET", "/v1/host", {"name": "here", "facts": facts})
    out = inn("host", "show").out
    assert "8.0 GiB, 0 B available" in out and "q35 = pc-q35-7.2, 2 in all" in out
    assert "2 (0-1,4)" in out and "aarch64 guests:  emulated by QEMU 7.2" in out
    first, second = out.splitlines()[-2:]
    assert first.split()[:4] == ["0", "0-2,5", "4.0", "GiB"] and first.endswith("8 x 2MiB (4)       10 21")
    assert second.split() == ["1", "-", "2.0", "GiB", "0", "B", "0", "B", "-", "21", "10"]
    assert inn("host", "show", "--json").json["facts"]["cpus"] == 2
    finding = {"name": "kvm", "verdict": "warn", "detail": "emulated", "repair": "enable it", "fixable": True}
    server.answer("GET", "/v1/doctor", {"findings": [finding]})
    ran = inn("doctor")
    assert ran.status == 0
    assert "warn  kvm  emulated" in ran.out and "-> enable it (inn doctor --fix does it)" in ran.out
    assert inn("doctor", "--json").json == [finding]
    server.answer("POST", "/v1/doctor/fix", {"findings": [{**finding, "verdict": "fail"}]})
    assert inn("doctor", "--fix").status == 1


def test_doctor_without_a_daemon_says_so(
    inn: Inn, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from innkeeper.client import autostart

    def fail(*args: object, **kwargs: object) -> None:
        raise errors.DaemonUnreachable("The daemon did not start: no disk", hint="its log is /x")

    monkeypatch.setattr(autostart, "start_daemon", fail)
    server.stop()
    ran = inn("doctor", "--json")
    assert ran.status == 1
    assert [(one["name"], one["verdict"], one["detail"]) for one in ran.json] == [
        ("daemon", "fail", "The daemon did not start: no disk")
    ]


def test_images(inn: Inn, server: ApiServer, tmp_path: Path) -> None:
    tiny = {"name": "tiny", "id": "sha256:0123456789abcdef", "kind": "kernel", "architecture": "x86_64",
            "size_bytes": 9 << 20, "created_at": 1.7e9, "min_memory_bytes": 64 << 20,
            "origin": {"recipe": "tiny", "packages": {"busybox": "1.35", "linux": "6.1"}}}  # fmt: skip
    server.answer("GET", "/v1/images", {"images": [tiny]})
    server.answer("GET", "/v1/images/tiny", tiny)
    server.answer("DELETE", "/v1/images/tiny", {"removed": "tiny"})
    assert inn("image", "list").out.splitlines()[1].split()[:3] == ["tiny", "0123456789ab", "kernel"]
    assert inn("image", "list", "-q").out == "tiny\n"
    assert inn("image", "list", "--json").json == [tiny]
    shown = inn("image", "show", "tiny").out
    assert "min memory:    64.0 MiB" in shown and "recipe=tiny\n" in shown
    assert shown.endswith("packages:\n  busybox:  1.35\n  linux:    6.1\n")
    assert inn("image", "rm", "tiny", "--json").json == {"name": "tiny", "removed": True}
    stream = b'data: {"stage":"fetch","fraction":0.1,"detail":""}\n\n' * 3
    done = b'event: done\ndata: {"image":{"name":"tiny"}}\n\n'
    server.answer("POST", "/v1/images/(build|import)", Body(stream + done, "text/event-stream"))
    ran = inn("image", "build", "tiny")
    assert (ran.status, ran.out, ran.err) == (0, "tiny\n", "fetch\n")
    assert server.requests[-1].json() == {"recipe": "tiny"}
    disk = tmp_path / "My Disk.v2.img"
    disk.write_bytes(b"x")
    inn("image", "import", str(disk))
    assert server.requests[-1].json() == {"name": "my-disk", "path": str(disk)}
    assert inn("image", "import", "/no/such").status == 3


def test_serve_stop_without_a_daemon(inn: Inn, server: ApiServer) -> None:
    server.stop()
    ran = inn("serve", "--stop")
    assert ran.status == 3 and ran.err.startswith("inn: No daemon runs")
    # A pid that belongs to somebody else now is left alone.
    import os

    server.paths.daemon_pid.write_text(f"{os.getpid()}\n")
    assert inn("serve", "--stop").status == 3


def test_serve_stop(inn: Inn, server: ApiServer) -> None:
    import subprocess

    process = subprocess.Popen(["sleep", "60"])
    server.answer("GET", "/v1/version", {"pid": process.pid})
    ran = inn("serve", "--stop", "--json")
    assert ran.json == {"pid": process.pid, "stopped": True}
    assert process.wait() == -15


def test_age_and_clean() -> None:
    now = time.time()
    ages = [age(now - s) for s in (5, 90, 119, 150, 3600, 90000, 86400 * 400)]
    assert ages == ["5s", "90s", "119s", "2m", "1h", "1d", "400d"]
    assert age(None) == age(0) == ""
    assert clean("a\nb\x1b") == "a\\x0ab\\x1b"
    assert clean("ä ☺") == "ä ☺"
