"""Kernel modules of an unpacked kernel package: what exists, what needs what, what to take along.

`modules.dep` is made by depmod when a package is installed, and is not in the package. What it says
comes from each module's own `.modinfo` section, so that is read here instead.
"""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_UNPACK: Final[dict[str, Callable[[bytes], bytes]]] = {
    ".ko": bytes,
    ".xz": lzma.decompress,
    ".gz": gzip.decompress,
}


@dataclass(frozen=True)
class Module:
    """One loadable module, unpacked. `path` is relative to `/lib/modules/<release>`, ending in `.ko`."""

    name: str
    path: str
    data: bytes
    needs: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


def module_name(path: str) -> str:
    """`kernel/drivers/char/hw_random/virtio-rng.ko.xz` -> `virtio_rng`, the name the kernel uses."""
    return path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")


def modinfo(data: bytes) -> list[tuple[str, str]]:
    """The `key=value` strings of the `.modinfo` section. Raises ValueError if there is no such section."""
    try:
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError("not a 64-bit kernel module")
        (table,) = struct.unpack_from("<Q", data, 0x28)
        size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
        sections = [struct.unpack_from("<IIQQQQ", data, table + i * size) for i in range(count)]
        names = sections[names_index][4]
        for name, _, _, _, offset, length in sections:
            start = names + name
            if data[start : data.index(b"\0", start)] == b".modinfo":
                pairs = (
                    one.decode(errors="replace").partition("=") for one in _strings(data, offset, length)
                )
                return [(key, value) for key, _, value in pairs]
    except (struct.error, IndexError) as error:
        raise ValueError(f"damaged kernel module: {error}") from error
    raise ValueError("the kernel module has no .modinfo section")


def _strings(data: bytes, offset: int, length: int) -> list[bytes]:
    return [one for one in data[offset : offset + length].split(b"\0") if one]


def parse_module(path: str, packed: bytes) -> Module:
    """`path` as in the package, perhaps ending in `.xz` or `.gz`; `packed` as stored there."""
    data = _UNPACK["." + path.rsplit(".", 1)[-1]](packed)
    needs: tuple[str, ...] = ()
    before: list[str] = []
    aliases = []
    for key, value in modinfo(data):
        if key == "depends":
            needs = tuple(one.replace("-", "_") for one in value.split(",") if one)
        elif key == "alias":
            aliases.append(value)
        elif key == "softdep" and "pre:" in value:
            before += value.split("pre:")[1].split("post:")[0].split()
    plain = path.rsplit(".ko", 1)[0] + ".ko"
    return Module(
        name=module_name(path),
        path=plain,
        data=data,
        needs=needs,
        before=tuple(one.replace("-", "_") for one in before),
        aliases=tuple(aliases),
    )


@dataclass
class ModuleTree:
    """`/lib/modules/<release>`: where each module lies, and what the kernel has built in."""

    files: dict[str, Path]
    builtin: frozenset[str]
    root: Path

    def has(self, name: str) -> bool:
        """Loadable or built in."""
        return name in self.files or name in self.builtin

    def read(self, name: str) -> Module:
        path = self.files[name]
        return parse_module(path.relative_to(self.root).as_posix(), path.read_bytes())


def read_tree(root: Path) -> ModuleTree:
    """Find every module under `root`; none is read yet."""
    files = {module_name(path.name): path for path in sorted(root.rglob("*.ko*")) if path.is_file()}
    builtin = root / "modules.builtin"
    lines = builtin.read_text().splitlines() if builtin.exists() else []
    return ModuleTree(files, frozenset(module_name(line) for line in lines), root)


def closure(wanted: Iterable[str], find: Callable[[str], Module | None]) -> list[Module]:
    """`wanted` and all they need, each after what it needs; what `find` does not know is left out."""
    order: dict[str, Module] = {}
    open_names: set[str] = set()

    def visit(name: str) -> None:
        if name in order or name in open_names:
            return
        open_names.add(name)
        module = find(name)
        if module:
            for other in (*module.before, *module.needs):
                visit(other)
            order[name] = module
        open_names.discard(name)

    for name in wanted:
        visit(name.replace("-", "_"))
    return list(order.values())


def index_files(modules: list[Module]) -> dict[str, str]:
    """`modules.dep` and `modules.alias` for `modules` only: a small file is a fast modprobe.

    As depmod writes them: every dependency, also indirect ones, the first to load at the end.
    """
    known = {module.name: module for module in modules}
    dep, alias = [], []
    for module in modules:
        before = [one for one in closure([module.name], known.get) if one is not module]
        dep.append(" ".join([f"{module.path}:", *(one.path for one in reversed(before))]))
        alias += [f"alias {pattern} {module.name}" for pattern in module.aliases]
    return {"modules.dep": "\n".join(dep) + "\n", "modules.alias": "\n".join(alias) + "\n"}
