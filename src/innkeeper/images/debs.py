"""Fetch and unpack Debian packages from the machine's own sources, as any user.

Nothing is installed and no package script runs. Which mirror a package came from is not recorded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from innkeeper.drivers.run import Finished, Runner
from innkeeper.errors import CommandFailed, Failed, InnkeeperError, NoCapacity, Unsupported

_DOWNLOAD_DEADLINE_S: Final = 900.0
_QUERY_DEADLINE_S: Final = 60.0
_EXTRACT_DEADLINE_S: Final = 300.0
# Messages are parsed, so they must not be translated.
APT_ENV: Final = {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
# apt as root drops to a user that cannot write into our private directory, and says so at length.
_APT_OPTIONS: Final = ("-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2")
_UPDATE_HINT: Final = "run as root: apt-get update"
_SUITE: Final = re.compile(r"^\s+\d+ \S+ (\S+) \S+ Packages$", re.MULTILINE)
_DEPENDS: Final = re.compile(r"^ [ |](?:Pre)?Depends: ([^<\s]\S*)$", re.MULTILINE)

# Debian's; Ubuntu has no kernel of that name, but one for virtual machines.
KERNELS: Final = ("linux-image-cloud-amd64", "linux-image-virtual")

Progress = Callable[[str, float | None, str], None]


@dataclass
class PackageTree:
    """Packages unpacked over each other in `root`, and the exact version of each."""

    root: Path
    versions: dict[str, str] = field(default_factory=dict)
    suites: set[str] = field(default_factory=set)


def explain_apt(error: InnkeeperError) -> InnkeeperError:
    """The same failure of apt or mmdebstrap in one line that says what to do."""
    if not isinstance(error, CommandFailed):
        return error
    text = f"{error.message}\n{error.details.get('stderr', '')}".lower()
    reason = error.message
    if "no space left" in text or "enough free space" in text:
        return NoCapacity("No space left while fetching packages", hint="free some disk space")
    if any(sign in text for sign in ("unable to locate package", "no packages found", "can't find a source")):
        return Unsupported(
            f"This machine's apt does not know a package that is needed ({reason})", hint=_UPDATE_HINT
        )
    if "404  not found" in text or "hash sum mismatch" in text or "size mismatch" in text:
        return Failed(f"The package lists of this machine are out of date ({reason})", hint=_UPDATE_HINT)
    network = (
        "could not resolve",
        "failed to fetch",
        "could not connect",
        "connection",
        "network is unreach",
    )
    if any(sign in text for sign in network):
        return Failed(
            f"Packages cannot be fetched ({reason})", hint="check the network and apt's proxy settings"
        )
    return error


async def _apt(runner: Runner, argv: list[str], deadline_s: float, cwd: Path | None = None) -> Finished:
    try:
        return await runner.run(argv, deadline_s=deadline_s, env=APT_ENV, cwd=str(cwd) if cwd else None)
    except InnkeeperError as error:
        raise explain_apt(error) from error


async def dependencies(runner: Runner, package: str) -> list[str]:
    """The packages that `package` depends on directly, in the order given. Raises Unsupported if unknown."""
    found = await _apt(runner, ["apt-cache", "depends", "--important", package], _QUERY_DEADLINE_S)
    return [str(name) for name in _DEPENDS.findall(found.text)]


async def knows(runner: Runner, package: str) -> bool:
    """Whether apt can install `package` from this machine's sources."""
    found = await runner.run(
        ["apt-cache", "show", package], deadline_s=_QUERY_DEADLINE_S, check=False, env=APT_ENV
    )
    return found.status == 0 and bool(found.stdout.strip())


async def add_packages(runner: Runner, tree: PackageTree, packages: Iterable[str], scratch: Path) -> None:
    """Download `packages` into `scratch` (made if needed) and unpack them into the tree; those it has are
    skipped."""
    wanted = sorted(set(packages) - set(tree.versions))
    if not wanted:
        return
    os.makedirs(scratch, exist_ok=True)
    await _apt(runner, ["apt-get", *_APT_OPTIONS, "download", *wanted], _DOWNLOAD_DEADLINE_S, scratch)
    for deb in _debs(scratch):
        name, version = await _identify(runner, deb)
        await runner.run(["dpkg-deb", "-x", str(deb), str(tree.root)], deadline_s=_EXTRACT_DEADLINE_S)
        tree.versions[name] = version
        deb.unlink()
    policy = await _apt(runner, ["apt-cache", "policy", *wanted], _QUERY_DEADLINE_S)
    tree.suites |= set(_SUITE.findall(policy.text))


def _debs(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.deb"))


async def _identify(runner: Runner, deb: Path) -> tuple[str, str]:
    shown = await runner.run(
        ["dpkg-deb", "--show", "--showformat=${Package} ${Version}", str(deb)], deadline_s=_QUERY_DEADLINE_S
    )
    name, _, version = shown.text.strip().partition(" ")
    return name, version


async def kernel_meta(runner: Runner, kernels: Sequence[str] = KERNELS) -> str:
    """The package that stands for the newest kernel for virtual machines. Raises Unsupported."""
    for name in kernels:
        if await knows(runner, name):
            return name
    raise Unsupported(
        f"This machine's apt sources have none of the kernels {', '.join(kernels)}",
        hint="run as root: apt-get update, or build on Debian or Ubuntu for amd64",
    )
