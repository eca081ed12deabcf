"""The machine's own package sources, as input for mmdebstrap."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from innkeeper.drivers.run import Runner
from innkeeper.errors import Unsupported
from innkeeper.images.debs import APT_ENV

_FORMAT: Final = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)|$(ARCHITECTURE)"
_KEYRINGS: Final = {
    "Debian": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "Ubuntu": "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
}
_PROXIES: Final = ("Acquire::http::Proxy", "Acquire::https::Proxy")


@dataclass(frozen=True)
class Source:
    """One suite of one archive: `release` is as in sources.list, e.g. `bookworm-security`."""

    origin: str
    uri: str
    release: str
    component: str
    keyring: str = ""

    @property
    def codename(self) -> str:
        return self.release.split("-")[0].split("/")[0]

    def line(self, release: str) -> str:
        options = f"[signed-by={self.keyring}] " if self.keyring else ""
        return f"deb {options}{self.uri} {release} {self.component}"


def parse_targets(text: str) -> list[Source]:
    """The amd64 sources of Debian and Ubuntu themselves in the output of `apt-get indextargets`."""
    found = []
    for row in text.splitlines():
        fields = row.split("|")
        if len(fields) != 6 or fields[0] not in _KEYRINGS or fields[5] != "amd64":
            continue
        origin, uri, release, component, signed_by, _ = fields
        # What apt has no value for it leaves as it stands; a key may also be given in full.
        keyring = signed_by if signed_by.startswith("/") else ""
        found.append(Source(origin, uri, release, component, keyring))
    return list(dict.fromkeys(found))


def choose(sources: list[Source], suite: str | None) -> tuple[str, list[str]]:
    """The suite's code name and its lines for sources.list.

    A suite that the machine has no source for is taken from the archives of the one it has.
    Raises Unsupported when there is nothing to start from.
    """
    names = [source.codename for source in sources]
    if not names:
        raise Unsupported(
            "This machine has no package sources of Debian or Ubuntu for amd64",
            hint="run as root: apt-get update",
        )
    own = max(dict.fromkeys(names), key=names.count)
    wanted = suite or own
    matching = [source for source in sources if source.codename == wanted]
    if matching:
        return wanted, [source.line(source.release) for source in matching]
    base = [source for source in sources if source.codename == own]
    return wanted, [source.line(source.release.replace(own, wanted, 1)) for source in base]


async def machine_sources(runner: Runner) -> list[Source]:
    """What `apt` on this machine is set up with, third parties left out."""
    found = await runner.run(
        ["apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages"], deadline_s=60, env=APT_ENV
    )
    return [_with_keyring(source) for source in parse_targets(found.text)]


def _with_keyring(source: Source) -> Source:
    keyring = source.keyring or _KEYRINGS[source.origin]
    if not os.path.exists(keyring):
        keyring = ""
    return Source(source.origin, source.uri, source.release, source.component, keyring)


async def proxy_options(runner: Runner) -> list[str]:
    """apt's proxy settings of this machine as configuration lines."""
    lines = []
    for name in _PROXIES:
        found = await runner.run(["apt-config", "shell", "VALUE", name], deadline_s=60, env=APT_ENV)
        value = found.text.strip().removeprefix("VALUE=").strip("'\"")
        if value:
            lines.append(f'{name} "{value}"')
    return lines
