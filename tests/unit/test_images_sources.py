"""Where packages come from, and what a build says when they do not come."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from innkeeper.daemon.images import Images
from innkeeper.drivers.run import FaultyRunner, Finished, Runner, SystemRunner
from innkeeper.errors import BadRequest, CommandFailed, Failed, InnkeeperError, NoCapacity, Unsupported
from innkeeper.images import debian
from innkeeper.images.aptsources import Source, choose, parse_targets
from innkeeper.images.debs import explain_apt
from innkeeper.images.foreign import ForeignApt, architecture
from innkeeper.images.tiny import build_tiny
from innkeeper.paths import default_paths

TARGETS = """\
Debian|http://mirror.test/debian/|bookworm|main|$(SIGNED_BY)|amd64
Debian|http://mirror.test/debian/|bookworm-updates|main|/keys/debian.gpg|amd64
Debian|http://mirror.test/debian-security/|bookworm-security|main|$(SIGNED_BY)|amd64
Debian|http://mirror.test/debian/|bookworm|main|$(SIGNED_BY)|i386
Somebody|http://third.test/|stable|main|$(SIGNED_BY)|amd64
"""


class NoLists:
    """A machine whose apt finds nothing of any other architecture."""

    spawn = None

    async def run(self, argv: Sequence[str], **options: Any) -> Finished:
        return Finished(tuple(argv), 0, b"", b"")


@pytest.mark.parametrize(
    ("name", "words"), [("riscv64", "riscv64 from release 13 on"), ("arm64", "build on")]
)
def test_a_release_without_the_architecture_is_told(tmp_path: Path, name: str, words: str) -> None:
    apt = ForeignApt(cast(Runner, NoLists()), architecture(name), tmp_path)
    with pytest.raises(Unsupported, match=f"have nothing for {name}") as refused:
        asyncio.run(apt.fetch_lists())
    assert words in refused.value.hint and "--kernel" in refused.value.hint


class LaterRelease(NoLists):
    """A mirror that has the architecture in a later release alone, and not all of its suites."""

    def __init__(self, lists: Path) -> None:
        self.lists = lists
        self.updates: list[str] = []

    async def run(self, argv: Sequence[str], **options: Any) -> Finished:
        if "indextargets" in argv:
            return Finished(tuple(argv), 0, TARGETS.encode(), b"")
        given = next((word for word in argv if word.startswith("Dir::Etc::sourcelist=")), "")
        self.updates.append(Path(given.partition("=")[2]).read_text() if given else "")
        if given:
            (self.lists / "mirror.test_trixie_main_binary-riscv64_Packages").touch()
        raise CommandFailed("apt-get failed", details={"stderr": "Some index files failed to download"})


def test_an_architecture_that_came_later_is_taken_from_the_release_that_has_it(tmp_path: Path) -> None:
    machine = LaterRelease(tmp_path / "lists")
    asyncio.run(ForeignApt(cast(Runner, machine), architecture("riscv64"), tmp_path).fetch_lists())
    assert machine.updates[0] == "" and len(machine.updates) == 2
    assert "http://mirror.test/debian/ trixie main" in machine.updates[1]


def test_one_that_did_not_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    machine = LaterRelease(tmp_path / "lists")
    with pytest.raises(InnkeeperError, match="apt-get failed"):
        asyncio.run(ForeignApt(cast(Runner, machine), architecture("arm64"), tmp_path).fetch_lists())
    assert machine.updates == [""]


def failed(stderr: str) -> InnkeeperError:
    return CommandFailed("apt-get failed: E: something", details={"stderr": stderr})


def test_only_the_distribution_itself_is_a_source() -> None:
    sources = parse_targets(TARGETS)
    assert [source.release for source in sources] == ["bookworm", "bookworm-updates", "bookworm-security"]
    assert sources[1].keyring == "/keys/debian.gpg"


def test_the_suite_is_the_machines_own_unless_another_is_asked_for() -> None:
    sources = parse_targets(TARGETS)
    name, lines = choose(sources, None)
    assert name == "bookworm"
    assert lines[1] == "deb [signed-by=/keys/debian.gpg] http://mirror.test/debian/ bookworm-updates main"
    name, lines = choose(sources, "trixie")
    assert name == "trixie"
    assert [line.split()[-2] for line in lines] == ["trixie", "trixie-updates", "trixie-security"]


def test_a_machine_without_sources_is_told_what_to_do() -> None:
    with pytest.raises(Unsupported, match="apt-get update"):
        choose([], None)
    assert choose([Source("Ubuntu", "http://m.test", "noble", "main")], None)[0] == "noble"


@pytest.mark.parametrize(
    ("stderr", "kind", "hint"),
    [
        ("E: Unable to locate package busybox-static", Unsupported, "apt-get update"),
        ("E: Failed to fetch http://x  404  Not Found", Failed, "apt-get update"),
        ("Err:1 Could not resolve 'mirror.test'", Failed, "network"),
        ("E: Write error - write (28: No space left on device)", NoCapacity, "free"),
        ("E: You don't have enough free space in /x", NoCapacity, "free"),
    ],
)
def test_failures_of_apt_say_what_to_do(stderr: str, kind: type[InnkeeperError], hint: str) -> None:
    error = explain_apt(failed(stderr))
    assert type(error) is kind
    assert hint in error.hint
    assert "\n" not in str(error)


def test_other_failures_stay_as_they_are() -> None:
    for error in (failed("something else"), NoCapacity("full")):
        assert explain_apt(error) is error


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    runner = FaultyRunner(SystemRunner(), fail={"apt-cache": failed("Could not resolve 'mirror.test'")})
    with pytest.raises(InnkeeperError):
        asyncio.run(build_tiny(tmp_path, runner, lambda stage, fraction, detail: None))
    assert os.listdir(tmp_path) == []


def test_progress_follows_mmdebstrap() -> None:
    seen: list[tuple[str, float | None, str]] = []
    read = debian.stage_reader(lambda *step: seen.append(step))
    for line in (
        "I: running apt-get update...",
        "noise",
        "I: installing remaining packages inside the chroot...",
        "Setting up openssh-server (1:9.2p1-2) ...",
        "I: running apt-get update...",
    ):
        read(line)
    assert [stage for stage, _, _ in seen] == ["lists", "install", "install"]
    assert seen[-1][2] == "Setting up openssh-server"
    fractions = [fraction for _, fraction, _ in seen if fraction is not None]
    assert fractions == sorted(fractions)


def test_own_files_are_complete() -> None:
    files = {**debian.early_files(), **debian.own_files("1234-abcd")}
    assert not any("@" in text for path, text in files.items() if path.endswith(("grub.cfg", "fstab")))
    assert "UUID=1234-abcd" in files["etc/fstab"] and "UUID=1234-abcd" in files["boot/grub/grub.cfg"]
    assert files["etc/initramfs-tools/hooks/zz-inn"].startswith("#!")


def test_the_initramfs_hands_the_devices_over(tmp_path: Path) -> None:
    """The hook leaves udev's script out, which did it; an image built without root has no device nodes."""
    script = tmp_path / "inn-dev"
    script.write_text(debian.early_files()["etc/initramfs-tools/scripts/init-bottom/inn-dev"])
    mount = tmp_path / "mount"
    mount.write_text(f'#!/bin/sh\necho "as $*" >> {tmp_path}/told; exit 1\n')  # the host keeps its own /dev
    mount.chmod(0o755)
    env = {"PATH": str(tmp_path), "rootmnt": "/root"}
    asked = subprocess.run(["/bin/sh", str(script), "prereqs"], env=env, capture_output=True, check=True)
    assert asked.stdout == b"" and not (tmp_path / "told").exists()
    assert subprocess.run(["/bin/sh", str(script)], env=env, check=False).returncode == 1
    assert (tmp_path / "told").read_text() == "as -n -o move /dev /root/dev\n"


def test_a_user_without_id_ranges_is_told_what_to_do(tmp_path: Path) -> None:
    table = tmp_path / "subuid"
    assert not debian._has_range(table, "ann", 1000)
    table.write_text("bob:100000:65536\nann:200000:100\nbroken\n")
    assert not debian._has_range(table, "ann", 1000)
    table.write_text("1000:100000:65536\n")
    assert debian._has_range(table, "ann", 1000)


def test_a_uid_without_a_user_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_111)
    monkeypatch.setattr(debian, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(Unsupported, match="no user with uid 4000111") as caught:
        debian.check_host()
    assert "inn image import" in caught.value.hint


def test_what_a_debian_cannot_be_built_with_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "check_host", lambda: "root")
    runner = FaultyRunner(SystemRunner())

    async def knows(runner: object, name: str) -> bool:
        return name != "nosuch"

    monkeypatch.setattr(debian, "knows", knows)

    def build(**options: Any) -> None:
        asyncio.run(debian.build_debian(tmp_path, runner, lambda *told: None, **options))

    with pytest.raises(BadRequest, match="does not fit"):
        build(disk_bytes=1 << 30)
    with pytest.raises(Unsupported, match="does not know nosuch"):
        build(packages=["vim", "nosuch"])
    assert not list(tmp_path.iterdir())
    assert not [call for call in runner.calls if "mmdebstrap" in call[0]]


def test_the_tiny_image_takes_nothing_more(tmp_path: Path) -> None:
    images = Images(default_paths(str(tmp_path)), FaultyRunner(SystemRunner()), None, None)  # type: ignore[arg-type]
    for options in ({"packages": ["vim"]}, {"size_bytes": 8 << 30}):
        with pytest.raises(BadRequest, match="tiny image takes no packages"):
            asyncio.run(images.build("tiny", "x", lambda *told: None, **options))
