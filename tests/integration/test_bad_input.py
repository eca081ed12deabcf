"""What bad input gets: one line that says what, why and what to do, the exit status of the contract,
and nothing half made."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vms import traces
from vms.cli import Inn
from vms.daemon import Daemon

pytestmark = pytest.mark.vm


@pytest.fixture(autouse=True)
def nothing_is_made(daemon: Daemon) -> Iterator[None]:
    """Whatever is refused here leaves no instance and no file."""
    names, files = daemon.names(), traces.instance_files(daemon.paths)
    yield
    assert daemon.names() == names
    assert traces.instance_files(daemon.paths) == files


# -- the command line --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frobnicate"], ["no such command: frobnicate"]),
        (["statr", "x"], ["did you mean start"]),
        (["run"], ["nothing to boot from"]),
        (["run", "tiny", "--memory", "12parsecs"], ["unknown unit", "parsecs"]),
        (["run", "tiny", "--memory", "lots"], ["not a size"]),
        (["run", "tiny", "--memory", "64MiB"], ["too little", "128MiB"]),
        (["run", "tiny", "--cpus", "0"], ["--cpus"]),
        (["run", "tiny", "--cpus", "many"], ["--cpus"]),
        (["run", "tiny", "--name", "Not_A_Name"], ["not a valid name"]),
        (["run", "tiny", "--name", "a.b"], ["not a valid name"]),
        (["run", "tiny", "--network", "bridge-of-sighs"], ["unknown network"]),
        (["run", "tiny", "--forward", "22"], ["not a port forward"]),
        (["run", "tiny", "--forward", "70000:22"], ["not a port forward"]),
        (["run", "tiny", "--forward", "2222:22", "--forward", "2222:23"], ["forwarded twice"]),
        (["run", "tiny", "--disk", "1GiB,bus=floppy"], ["unknown disk bus"]),
        (["run", "tiny", "--disk", "1KiB"], ["64KiB"]),
        (["run", "tiny", "--boot", "floppy"], ["boot order"]),
        (["run", "tiny", "--initrd", "/etc/hostname"], ["initrd needs a kernel"]),
        (["run", "tiny", "--accel", "magic"], ["--accel"]),
        (["run", "tiny", "--restart-policy", "sometimes"], ["--restart-policy"]),
        (["run", "tiny", "--"], ["no command"]),
        (["exec", "shared"], ["no command"]),
        (["stop"], ["NAME"]),
        (["wait", "shared", "--timeout", "soon"], ["soon"]),
        (["cp", "/etc/hostname", "/tmp/x"], ["guest"]),
        (["list", "--no-such-option"], ["--no-such-option"]),
        (["set", "shared", "colour=red"], ["colour"]),
        (["console", "shared", "--escape", "ctrl-shift-x"], ["not a key"]),
    ],
    ids=lambda value: "_".join(value)[:50] if isinstance(value, list) else None,
)
def test_bad_usage(inn: Inn, shared_vm: str, words: list[str], said: list[str]) -> None:
    inn(*words).failed(2, *said)


@pytest.mark.parametrize(
    "words",
    [["start"], ["stop"], ["kill"], ["pause"], ["resume"], ["restart"], ["rm"], ["show"], ["wait"], ["logs"],
     ["console"], ["screenshot"], ["exec"], ["show", "--argv"], ["show", "--yaml"]],
    ids="_".join,
)  # fmt: skip
def test_what_is_not_there(inn: Inn, words: list[str]) -> None:
    tail = ["--", "true"] if words == ["exec"] else []
    for name in ("no-such-vm", "../../etc", "No Such"):
        inn(words[0], name, *words[1:], *tail).failed(3, name)


def test_an_image_that_is_not_there(inn: Inn) -> None:
    inn("run", "no-such-image", "-d").failed(3, "no-such-image", "inn image")
    inn("run", "./no-such.img", "-d").failed(3, "no-such.img")
    inn("run", "tiny", "--cdrom", "/no/such.iso", "-d").failed(3, "/no/such.iso")
    inn("run", "--kernel", "/no/such/kernel", "-d").failed(3, "/no/such/kernel")
    inn("image", "show", "no-such").failed(3, "no-such")
    inn("image", "rm", "no-such").failed(3, "no-such")
    inn("image", "build", "windows").failed(2, "windows")
    inn("image", "import", "/no/such.img").failed(3, "/no/such.img")


def test_a_name_that_is_taken(inn: Inn, shared_vm: str) -> None:
    inn("run", "tiny", "--name", shared_vm, "-d").failed(4, "there is an instance named shared already")
    inn("create", "tiny", "--name", shared_vm).failed(4, "shared")


# -- spec files --------------------------------------------------------------------------------

SPEC = """kind: instance
name: own
spec:
  image: tiny
  cpu:
    count: 2
"""


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (SPEC + "  colour: red\n", 7, ["colour", "unknown field"]),
        (SPEC + "  memory:\n    size: 12parsecs\n", 8, ["memory.size", "unknown unit"]),
        (SPEC + "  memory:\n    sise: 1GiB\n", 8, ["sise", "unknown field", "size"]),
        (SPEC.replace("count: 2", "count: two"), 6, ["cpu.count"]),
        (SPEC.replace("kind: instance", "kind: spaceship"), 1, ["spaceship"]),
        (SPEC.replace("name: own", "name: Not_A_Name"), 2, ["name"]),
        (SPEC + "  networks:\n    - mode: user\n    - mode: warp\n", 9, ["networks"]),
        (SPEC + "  cpu:\n    count: 3\n", 7, ["cpu"]),
        (SPEC + "  memory: {size: [\n", 8, []),
    ],
    ids=["field", "unit", "misspelt", "type", "kind", "name", "choice", "twice", "yaml"],
)  # fmt: skip
def test_a_spec_with_an_error_names_its_line(
    inn: Inn, tmp_path: Path, text: str, line: int, said: list[str]
) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    inn("apply", "-f", file).failed(2, f"spec.yaml:{line}", *said)


def test_one_bad_document_applies_none(inn: Inn, tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(SPEC + "---\n" + SPEC.replace("own", "own-2").replace("count: 2", "count: -1"))
    inn("apply", "-f", file).failed(2, "two.yaml:13", "cpu.count")
    inn("apply", "-f", tmp_path / "none.yaml").failed(3, "none.yaml")
    inn("apply", "-f", "-", stdin=b"\xff\xfe\x00").failed(2)
    inn("apply", "-f", "-", stdin=b"").failed(2)


# -- images ------------------------------------------------------------------------------------


def _text(path: Path) -> None:
    path.write_text("Dear diary, this is no disk at all.\n" * 100)


def _cut_qcow2(path: Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "64M"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 0 4M", path], check=True, capture_output=True)
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _with_backing_file(path: Path) -> None:
    base = path.with_name("base.raw")
    base.write_bytes(b"secret" * 4096)
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base), str(path)]
    subprocess.run(argv, check=True)


@pytest.mark.parametrize("make", [_text, _cut_qcow2, _empty, _with_backing_file])
def test_an_image_that_is_none(inn: Inn, tmp_path: Path, make: object) -> None:
    path = tmp_path / "bad.img"
    assert callable(make)
    make(path)
    for words in (
        ["run", str(path), "-d"],
        ["create", str(path)],
        ["run", "tiny", "--disk", str(path), "-d"],
    ):
        inn(*words, "--name", "own").failed(1, "bad.img")
    imported = inn("image", "import", path)
    assert imported.status == 1 and "bad.img" in imported.err.splitlines()[-1]
    assert [one["name"] for one in inn("image", "list", "--json").ok().json] == ["tiny"]


def test_a_kernel_that_is_none(inn: Inn, tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    _text(path)
    inn("run", "--kernel", path, "-d", "--timeout", "3s").failed(1)


def test_a_directory_in_place_of_a_file(inn: Inn, tmp_path: Path) -> None:
    inn("run", tmp_path, "-d").failed(2, "directory")


# -- what the host does not have ---------------------------------------------------------------


def test_more_memory_than_there_is(inn: Inn) -> None:
    inn("run", "tiny", "--memory", "8TiB", "-d").failed(4, "memory")


def test_kvm_where_it_cannot_be_used(inn: Inn, daemon: Daemon) -> None:
    if daemon.client.host.show()["facts"]["kvm"] == "hardware":
        pytest.skip("KVM works here")
    inn("run", "tiny", "--accel", "kvm", "-d").failed(4, "KVM", "auto")


def test_a_machine_type_qemu_does_not_know(inn: Inn) -> None:
    inn("run", "tiny", "--machine", "pdp11", "-d").failed(4, "pdp11")


def test_qemu_that_dies_at_start_is_quoted(inn: Inn) -> None:
    inn("run", "tiny", "--cpu-model", "z80", "-d").failed(4, "no CPU model z80", "inn cpu models")
    inn("run", "tiny", "--vnc", "192.0.2.99:5999", "-d").failed(1, "192.0.2.99")


def test_a_screen_that_is_not_there(inn: Inn, daemon: Daemon, boot_disk: Path, tmp_path: Path) -> None:
    inn(
        "run", boot_disk, "-d", "--memory", "16MiB", "--vga", "none", "--network", "none", "--name", "own"
    ).ok()
    try:
        inn("screenshot", "own", "-o", tmp_path / "x.png").failed(4, "no display")
        assert not (tmp_path / "x.png").exists()
        inn("exec", "own", "--", "true").failed(1, "agent")
        inn("cp", "/etc/hostname", "own:/tmp/").failed(1, "agent")
    finally:
        inn("rm", "-f", "own").ok()


def test_json_errors_are_json(inn: Inn) -> None:
    answer = inn("show", "no-such-vm", "--json")
    assert answer.status == 3
    assert answer.json["error"]["code"] == "not_found" and answer.json["error"]["message"]
