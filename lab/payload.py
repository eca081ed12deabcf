"""What is carried into the lab: this source tree, the Python packages it needs, and the tiny image.

The lab has no package index to ask, so its packages are those of the environment we run in. That works where
both have the same Python version: compiled modules belong to one. Packages and image are 150 MB that seldom
change: the lab gets them as a disk, which holds a tar archive (through the guest agent they take a minute).
The source tree goes by the agent, so that it can be brought again into a lab that was kept.
"""

from __future__ import annotations

import compileall
import gzip
import hashlib
import io
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[1]
# What tests/conftest.py and the tests marked `lab` need beside the package's own dependencies.
REQUIRED: Final = ("innkeeper", "pytest", "pytest-timeout", "hypothesis")
_TREE: Final = ("src", "tests", "bench", "lab", "pyproject.toml")
PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"


def source_archive() -> bytes:
    """The tree as it is now, compressed, with bytecode: compiling takes a minute in an emulated CPU."""
    compileall.compile_dir(REPOSITORY / "src", quiet=1)
    return gzip.compress(_tar((path, REPOSITORY / path) for path in _TREE), compresslevel=3)


def bulk_disk(directory: Path, tiny: Path) -> Path:
    """A disk image in `directory`: an archive of `packages/` and `tiny/`. Made if there is none of this
    content; those of other content are removed."""
    disk = directory / f"bulk-{_bulk_key(tiny)}.qcow2"
    if not disk.exists():
        for old in directory.glob("bulk-*"):
            old.unlink()
        members = [(f"packages/{name}", path) for name, path in sorted(package_files(REQUIRED))]
        members += [(f"tiny/{tiny.name}/{path.name}", path) for path in sorted(tiny.iterdir())]
        archive, draft = disk.with_suffix(".tar"), disk.with_suffix(".draft")
        archive.write_bytes(_tar(members))
        # As qcow2, since an archive is not what a raw disk looks like, and would be refused as one.
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(archive), str(draft)]
        subprocess.run(convert, check=True)
        archive.unlink()
        draft.replace(disk)
    return disk


def _bulk_key(tiny: Path) -> str:
    """Changes with the versions of the packages and with the image, whose name is a hash of its content."""
    names = sorted(f"{one.name}=={one.version}" for one in _closure(REQUIRED))
    return hashlib.sha256("\n".join([PYTHON, tiny.name, *names]).encode()).hexdigest()[:16]


def _tar(members: Iterable[tuple[str, Path]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, path in members:
            archive.add(path, name, filter=_as_root)
    return out.getvalue()


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return None if member.name.endswith((".egg-info", ".tmp")) else member


def package_files(required: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """All files of installed packages and of those they need: (path below the module path, file)."""
    for distribution in _closure(required):
        for file in distribution.files or ():
            path = Path(str(distribution.locate_file(file)))
            # Scripts lie outside of the directory; the editable package itself is a .pth file only.
            if ".." not in file.parts and not file.name.endswith(".pth") and path.is_file():
                yield str(file), path


def _closure(required: Iterable[str]) -> list[metadata.Distribution]:
    """The distributions and all they need, each once. Extras and markers that do not hold are left out."""
    found: dict[str, metadata.Distribution] = {}
    waiting = list(required)
    while waiting:
        name = _normal(waiting.pop())
        if name in found:
            continue
        found[name] = metadata.distribution(name)
        waiting += list(needed(found[name].requires or ()))
    return [found[name] for name in sorted(found)]


def needed(requires: Iterable[str]) -> Iterator[str]:
    """Names of the requirements that hold here. Raises ModuleNotFoundError without `packaging`, which pytest
    brings along."""
    from packaging.requirements import Requirement

    for text in requires:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def _normal(name: str) -> str:
    """https://packaging.python.org/en/latest/specifications/name-normalization/"""
    return re.sub(r"[-_.]+", "-", name).lower()
