"""`inn run` and `inn create`: from options to a spec, names, and what is left behind (nothing)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cli_harness import Inn, inn, server

from fakes.api_server import ApiServer, FakeSocket, Request, instance
from innkeeper import errors
from innkeeper.cli import names, specargs
from innkeeper.spec.instance import InstanceSpec

__all__ = ["inn", "server"]  # fixtures


def build(**options: Any) -> dict[str, Any]:
    """The spec for these options; what the real model makes of it must be valid."""
    spec = specargs.build(options, lambda path: f"text of {path}")
    InstanceSpec.model_validate(spec)
    return spec


def test_nothing_given_is_left_to_its_default() -> None:
    assert build(image="tiny") == {"image": "tiny"}


def test_everything_given(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").touch()
    (tmp_path / "initrd").touch()
    spec = build(
        image="debian",
        cpus=2,
        cpu_model="max",
        memory="1GiB",
        accel="tcg",
        machine="pc",
        firmware="bios",
        kernel=str(tmp_path / "vmlinuz"),
        initrd=str(tmp_path / "initrd"),
        append="quiet",
        boot="cdrom,disk",
        network=("user,model=e1000,mac=52:54:00:AB:CD:EF", "virtio"),
        forward=("2222:22", "[::1]:53:53/udp"),
        vga="none",
        vnc="socket",
        user_data="u.yaml",
        label=("a=b", "c=d=e"),
        restart_policy="always",
        root_size="20G",
        agent=False,
    )
    assert spec == {
        "image": "debian",
        "disks": [{"name": "root", "size": "20G"}],
        "cpu": {"count": 2, "model": "max"},
        "memory": {"size": "1GiB"},
        "machine": {"type": "pc", "firmware": "bios", "accelerator": "tcg"},
        "boot": {
            "kernel": str(tmp_path / "vmlinuz"),
            "initrd": str(tmp_path / "initrd"),
            "append": "quiet",
            "order": ["cdrom", "disk"],
        },
        "networks": [
            {
                "mode": "user",
                "model": "e1000",
                "mac": "52:54:00:ab:cd:ef",
                "forward": [
                    {"host": 2222, "guest": 22},
                    {"host": 53, "guest": 53, "protocol": "udp", "address": "::1"},
                ],
            },
            {"mode": "user", "model": "virtio"},
        ],
        "display": {"vga": "none", "vnc": "socket"},
        "user_data": "text of u.yaml",
        "restart_policy": "always",
        "labels": {"a": "b", "c": "d=e"},
        "wait_for_agent": False,
    }


def test_own_disk_image_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("disk.qcow2").write_bytes(b"QFI\xfb")
    for image in ("disk.qcow2", "./disk.qcow2"):
        assert build(image=image)["disks"] == [{"name": "root", "copy_of": str(tmp_path / "disk.qcow2")}]
    with pytest.raises(errors.NotFound, match=r"No such disk image: \./nothing"):
        build(image="./nothing")
    with pytest.raises(errors.BadRequest, match="a directory"):
        build(image="./")


def test_iso_is_put_into_a_drive(tmp_path: Path) -> None:
    iso = tmp_path / "debian"
    iso.write_bytes(b"\0" * 32769 + b"CD001")
    (drive,) = build(image=str(iso))["disks"]
    assert drive == {"name": "cdrom", "path": str(iso), "media": "cdrom", "bus": "sata", "readonly": True}
    disks = build(image=str(iso), disk=("10GiB",), cdrom=(str(iso),), machine="pc")["disks"]
    assert [(one["name"], one.get("bus")) for one in disks] == [
        ("cdrom", "ide"), ("disk1", None), ("cdrom2", "ide"),
    ]  # fmt: skip


def test_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a,b=c.img").touch()
    Path("data").touch()
    assert specargs.disk("10GiB,bus=scsi", "disk1") == {"name": "disk1", "size": "10GiB", "bus": "scsi"}
    assert specargs.disk("data,ro,name=db", "disk1") == {
        "name": "db", "path": str(tmp_path / "data"), "readonly": True,
    }  # fmt: skip
    assert specargs.disk("a,b=c.img", "x")["path"] == str(tmp_path / "a,b=c.img")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10Gigs", "Unknown unit"),
        ("./none.img", "No such disk image"),
        ("nonsense", "No such disk image"),
        ("1GiB,bus=usb", "Unknown disk bus"),
        ("1GiB,cache=none", "Unknown disk option"),
    ],
)
def test_bad_disks(text: str, said: str) -> None:
    with pytest.raises(errors.InnkeeperError, match=said):
        specargs.disk(text, "disk1")


@pytest.mark.parametrize(
    ("text", "forward"),
    [
        ("8080:80", {"host": 8080, "guest": 80}),
        ("8080:80/tcp", {"host": 8080, "guest": 80, "protocol": "tcp"}),
        ("0.0.0.0:53:53/udp", {"address": "0.0.0.0", "host": 53, "guest": 53, "protocol": "udp"}),
        ("*:1:2", {"address": "0.0.0.0", "host": 1, "guest": 2}),
        ("[fe80::1]:1:2", {"address": "fe80::1", "host": 1, "guest": 2}),
    ],
)
def test_forwards(text: str, forward: dict[str, Any]) -> None:
    assert specargs.forward(text) == forward


@pytest.mark.parametrize(
    "text",
    ["", "22", "a:22", "0:22", "22:65536", "-1:22", "2222:22/sctp", "host:1:2", ":1:2", "[::1:1:2",
     "1.2.3:1:2", "1:2:3:4", "٣:22", "22:22/"],
)  # fmt: skip
def test_bad_forwards(text: str) -> None:
    if text == "22:22/":
        assert specargs.forward(text) == {"host": 22, "guest": 22}
        return
    with pytest.raises(errors.BadRequest, match="Not a port forward"):
        specargs.forward(text)


@pytest.mark.parametrize(
    ("text", "order"), [("cdrom,disk", ["cdrom", "disk"]), ("dcn", ["cdrom", "disk", "network"]),
                        ("net", ["network"]), ("d", ["cdrom"])]
)  # fmt: skip
def test_boot_order(text: str, order: list[str]) -> None:
    assert specargs.boot_order(text) == order


@pytest.mark.parametrize("text", ["", "floppy", "disk,disk", "cx", "disk,"])
def test_bad_boot_order(text: str) -> None:
    with pytest.raises(errors.BadRequest, match="Not a boot order"):
        specargs.boot_order(text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "Nothing to boot from"),
        ({"image": "tiny", "memory": "1 zillion"}, "Unknown unit"),
        ({"image": "tiny", "root_size": "x"}, "Not a size"),
        ({"image": "tiny", "network": ("tap",)}, "Unknown network"),
        ({"image": "tiny", "network": ("user,speed=1",)}, "Unknown network option"),
        ({"image": "tiny", "network": ("none", "user")}, "excludes"),
        ({"image": "tiny", "network": ("none",), "forward": ("1:2",)}, "needs a network"),
        ({"image": "tiny", "label": ("x",)}, "Not a label"),
        ({"image": "tiny", "initrd": "/x"}, "needs a kernel"),
        ({"image": "tiny", "kernel": "/no/kernel"}, "No such kernel"),
        ({"image": "tiny", "cdrom": ("/no/iso",)}, "No such CD-ROM image"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.InnkeeperError, match=said):
        build(**options)


def test_network_none() -> None:
    assert build(image="tiny", network=("none",))["networks"] == []


def test_user_data(tmp_path: Path) -> None:
    file = tmp_path / "u"
    file.write_text("#cloud-config\n")
    assert specargs.read_user_data(str(file)) == "#cloud-config\n"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(errors.BadRequest, match="not UTF-8"):
        specargs.read_user_data(str(file))
    file.write_bytes(b"x" * (512 * 1024 + 1))
    with pytest.raises(errors.BadRequest, match="512 KiB"):
        specargs.read_user_data(str(file))


def test_names() -> None:
    made = {names.generate() for _ in range(200)}
    assert len(made) > 150
    longest = f"{max(names.ADJECTIVES, key=len)}-{max(names.NOUNS, key=len)}"
    assert all(re.fullmatch(r"[a-z]+-[a-z]+", name) for name in {*made, longest})
    assert len(set(names.ADJECTIVES)) * len(set(names.NOUNS)) > 5000
    assert len(longest) <= 63


def created(request: Request) -> dict[str, Any]:
    return instance(request.json().get("name", "?"))


def test_run_waits_and_prints_the_name(inn: Inn, server: ApiServer) -> None:
    server.answer("POST", "/v1/instances", created)
    ran = inn("run", "tiny", "--name", "web", "--timeout", "9s", "--rm", "-d")
    assert (ran.status, ran.out, ran.err) == (0, "web\n", "")
    assert server.requests[-1].json() == {
        "name": "web", "spec": {"image": "tiny"}, "start": True, "wait": "ready", "timeout_s": 9.0,
        "remove_when_ended": True, "keep_on_failure": False,
    }  # fmt: skip
    assert inn("run", "tiny", "--no-wait", "--json").json["state"] == "running"
    assert server.requests[-1].json()["wait"] == "running"


def test_create(inn: Inn, server: ApiServer) -> None:
    server.answer("POST", "/v1/instances", created)
    for args in (["tiny", "--name", "web"], ["web", "--image", "tiny"], ["--name", "web", "--image", "tiny"]):
        assert inn("create", *args).out == "web\n"
        body = server.requests[-1].json()
        assert (body["name"], body["spec"], body["start"]) == ("web", {"image": "tiny"}, False)
    assert inn("create", "a", "--image", "tiny", "--name", "b").status == 2


def test_a_made_up_name_that_is_taken_is_made_up_again(inn: Inn, server: ApiServer) -> None:
    answers: list[Any] = [errors.NameTaken("Taken"), errors.NameTaken("Taken"), created]
    server.answer("POST", "/v1/instances", lambda r: a(r) if callable(a := answers.pop(0)) else a)
    assert inn("run", "tiny", "-d").status == 0
    assert len({one.json()["name"] for one in server.requests}) == 3
    server.answer("POST", "/v1/instances", errors.NameTaken("Taken"))
    server.requests.clear()
    assert inn("run", "tiny", "-d", "--name", "web").status == 4
    assert len(server.requests) == 1


def status_3(ws: FakeSocket) -> None:
    asked = json.loads(ws.receive() or "")
    ws.send(b"\x01" + " ".join(asked["argv"]).encode() + b"\n")
    ws.say({"exit_status": 3})


@pytest.mark.parametrize(
    ("options", "removed"),
    [([], True), (["--name", "web"], False), (["-d"], False), (["--keep"], False),
     (["--name", "web", "--rm"], True)],
)  # fmt: skip
def test_run_a_command(inn: Inn, server: ApiServer, options: list[str], removed: bool) -> None:
    server.answer("POST", "/v1/instances", created)
    server.answer("DELETE", "/v1/instances/.*", {"removed": "x"})
    server.on_socket("/v1/instances/.*/exec", status_3)
    ran = inn("run", "tiny", *options, "--", "uname", "-a", "--json")
    assert (ran.status, ran.out, ran.err) == (3, "uname -a --json\n", "")
    deleted = [one for one in server.requests if one.method == "DELETE"]
    assert bool(deleted) == removed
    body = server.requests[0].json()
    assert body["remove_when_ended"] == removed
    if deleted:
        assert deleted[0].path.endswith(body["name"]) and deleted[0].query == {"force": "true"}


def test_run_a_command_with_json(inn: Inn, server: ApiServer) -> None:
    server.answer("POST", "/v1/instances", created)
    server.answer("DELETE", "/v1/instances/.*", errors.NotFound("gone already"))
    server.on_socket("/v1/instances/.*/exec", status_3)
    ran = inn("run", "tiny", "--json", "--", "ls")
    assert ran.status == 3
    assert set(ran.json) == {"name", "exit_status", "stdout", "stderr", "removed"}


def test_the_vm_goes_when_its_command_cannot_run(inn: Inn, server: ApiServer) -> None:
    server.answer("POST", "/v1/instances", created)
    server.answer("DELETE", "/v1/instances/.*", {"removed": "x"})
    server.answer("GET", "/v1/instances/.*/exec", errors.AgentMissing("No agent answers"))
    ran = inn("run", "tiny", "--", "ls")
    assert (ran.status, ran.err) == (1, "inn: No agent answers\n")
    assert server.requests[-1].method == "DELETE"


def test_a_command_in_ones_own_image_waits_for_the_agent(inn: Inn, server: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "disk").touch()
    server.answer("POST", "/v1/instances", created)
    server.on_socket("/v1/instances/.*/exec", status_3)
    inn("run", str(tmp_path / "disk"), "--keep", "--", "ls")
    assert server.requests[0].json()["spec"]["wait_for_agent"] is True


def test_a_failed_start_is_told(inn: Inn, server: ApiServer) -> None:
    error = errors.StartFailed("The kernel panicked: no init", hint="see its last lines: ...")
    server.answer("POST", "/v1/instances", error)
    ran = inn("run", "tiny")
    assert (ran.status, ran.err) == (1, f"inn: {error}\n")


def test_ctrl_c_never_removes_what_was_there_before(
    inn: Inn, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from innkeeper.client.client import Instances

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Instances, "create", interrupted)
    server.answer("GET", "/v1/instances/web", instance("web", created_at=1.0))
    assert inn("run", "tiny", "--name", "web").status == 130
    assert not server.sent("DELETE", "/v1/instances/web")
    assert inn("run", "tiny", "--name", "gone").status == 130
