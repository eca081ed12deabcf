"""Architectures of images, and packages of another one than this machine's.

apt is told so by options alone, with package lists of its own in a scratch directory: nothing of the
machine's set-up is changed, and no foreign package is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from innkeeper.drivers.run import Finished, Limits, Runner
from innkeeper.errors import BadRequest, InnkeeperError, Unsupported
from innkeeper.images.aptsources import choose, machine_sources
from innkeeper.images.debs import APT_ENV, KERNELS, explain_apt

_UPDATE_DEADLINE_S: Final = 300.0
_APT: Final = ("apt-get", "apt-cache")


@dataclass(frozen=True)
class Architecture:
    """`debian` is Debian's name of it; `kernels` are packages that stand for the newest one, best first."""

    name: str
    debian: str
    kernels: tuple[str, ...]
    loader: str  # where its programs look for ld.so
    libraries: str
    append: str  # kernel command line
    append_tcg: str  # what gains time under TCG
    since: str = ""  # Debian's first release that has it, where the machine's own may be older


ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    one.name: one
    for one in (
        Architecture(
            "x86_64", "amd64", KERNELS, "lib64", "lib/x86_64-linux-gnu",
            "console=ttyS0 quiet panic=-1 cryptomgr.notests",
            "mitigations=off nokaslr tsc=reliable no_timer_check",
        ),
        Architecture(
            "aarch64", "arm64", ("linux-image-cloud-arm64", "linux-image-virtual"),
            "lib", "lib/aarch64-linux-gnu",
            "console=ttyAMA0 quiet panic=-1 cryptomgr.notests", "mitigations=off nokaslr",
        ),
        Architecture(
            "riscv64", "riscv64", ("linux-image-riscv64", "linux-image-virtual"),
            "lib", "lib/riscv64-linux-gnu",
            "console=ttyS0 quiet panic=-1 cryptomgr.notests", "mitigations=off nokaslr", since="trixie",
        ),
    )
}  # fmt: skip


def architecture(name: str) -> Architecture:
    """By our name or Debian's. Raises BadRequest."""
    for one in ARCHITECTURES.values():
        if name in (one.name, one.debian):
            return one
    known = ", ".join(f"{one.name} ({one.debian})" for one in ARCHITECTURES.values())
    raise BadRequest(f"No architecture {name!r}", hint=f"there are: {known}")


class ForeignApt:
    """A runner whose apt is that of another architecture, with lists in `scratch` (`fetch_lists`)."""

    def __init__(self, runner: Runner, wanted: Architecture, scratch: Path) -> None:
        self._runner, self._wanted = runner, wanted
        self.spawn = runner.spawn
        self._lists, self._cache = scratch / "lists", scratch / "cache"
        self._sources = scratch / "sources.list"

    @property
    def _options(self) -> list[str]:
        settings = {
            "APT::Architecture": self._wanted.debian,
            "APT::Architectures::": self._wanted.debian,
            "APT::Sandbox::User": "root",
            "Dir::State::lists": f"{self._lists}/",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": f"{self._cache}/",
        }
        if self._sources.exists():
            settings |= {"Dir::Etc::sourcelist": str(self._sources), "Dir::Etc::sourceparts": "-"}
        return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    async def fetch_lists(self) -> None:
        """Of the machine's own release, or where that lacks the architecture of Debian's first one that has
        it, from the same archives. Raises Unsupported when these have nothing of it, Failed when they cannot
        be reached."""
        for directory in (self._lists / "partial", self._cache / "archives" / "partial"):
            directory.mkdir(parents=True)
        failed = await self._update()
        own = [one for one in await machine_sources(self._runner) if one.origin == "Debian"]
        if not self._has_lists() and self._wanted.since and own:
            self._sources.write_text("\n".join(choose(own, self._wanted.since)[1]) + "\n")
            failed = await self._update()
            if self._has_lists():
                return  # a suite beside the release itself, such as its updates, may lack the architecture
        if failed is not None:
            raise failed
        if not self._has_lists():
            raise self.nothing()

    async def _update(self) -> InnkeeperError | None:
        """What went wrong, though some lists may have come."""
        try:
            await self.run(["apt-get", "-q", "update"], deadline_s=_UPDATE_DEADLINE_S, env=APT_ENV)
        except InnkeeperError as error:
            return explain_apt(error)
        return None

    def _has_lists(self) -> bool:
        return any(self._lists.glob(f"*_binary-{self._wanted.debian}_Packages*"))

    def nothing(self) -> Unsupported:
        """The refusal of a machine whose sources lack the architecture."""
        since = "Debian has riscv64 from release 13 on; " if self._wanted.name == "riscv64" else ""
        return Unsupported(
            f"This machine's package sources have nothing for {self._wanted.debian}",
            hint=f"{since}build on a machine whose release has it, or boot your own kernel: --kernel, --arch",
        )

    async def run(
        self,
        argv: Sequence[str],
        *,
        deadline_s: float,
        stdin: bytes = b"",
        check: bool = True,
        limits: Limits | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Finished:
        words = [argv[0], *self._options, *argv[1:]] if argv[0] in _APT else argv
        return await self._runner.run(
            words, deadline_s=deadline_s, stdin=stdin, check=check, limits=limits, env=env, cwd=cwd,
            on_line=on_line,
        )  # fmt: skip
