"""From the options of `inn run` and `inn create` to a spec: pure but for looking at files named.

What can be judged without the daemon is judged here, so that the error comes at once; the daemon
checks everything again. Relative paths are made absolute: the daemon has another working directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from innkeeper import errors
from innkeeper.units import parse_size

Json = dict[str, Any]

BUSES: Final = ("virtio", "scsi", "sata", "ide")
NIC_MODELS: Final = ("virtio", "e1000", "e1000e", "rtl8139")
# Words, or the letters of QEMU's -boot: "cd" is the disk, then the cdrom.
_BOOT_WORDS: Final = {
    "disk": "disk", "hd": "disk", "c": "disk",
    "cdrom": "cdrom", "d": "cdrom",
    "network": "network", "net": "network", "n": "network",
}  # fmt: skip
_CPU_OPTIONS: Final = {
    "count": "cpus", "max": "max_cpus", "sockets": "sockets", "cores": "cores", "threads": "threads",
    "emulator": "emulator_cpus", "iothreads": "io_cpus", "model": "cpu_model", "paravirt": "paravirt",
}  # fmt: skip
# Fields of disks[].qos, and QEMU's words for two of them.
_DISK_LIMITS: Final = {
    name: name
    for rate in (f"{way}_{unit}" for way in ("total", "read", "write") for unit in ("bytes", "ops"))
    for name in (rate, f"{rate}_burst", f"{rate}_burst_length")
} | {"op_size": "op_size", "iops": "total_ops", "bps": "total_bytes"}
_CPU_QOS_OPTIONS: Final = {
    "shares": "cpu_shares", "reservation": "cpu_reservation", "limit": "cpu_limit",
}  # fmt: skip
_USER_DATA_MAX: Final = 512 * 1024
# ISO 9660: the volume descriptor starts at sector 16, with this identifier at its second byte.
_ISO_MARK_AT: Final = 16 * 2048 + 1
_ISO_MARK: Final = b"CD001"


def is_path(image: str) -> bool:
    """Whether IMAGE means a file rather than an image of the catalogue (whose names have no slash)."""
    return "/" in image or os.path.isfile(image)


def existing_file(path: str, what: str) -> str:
    """The absolute path of a file that is there and can be read."""
    if not os.path.exists(path):
        raise errors.NotFound(f"No such {what}: {path}", hint="give the path of a file")
    if os.path.isdir(path):
        raise errors.BadRequest(f"Not a {what}, but a directory: {path}", hint="give the path of a file")
    if not os.access(path, os.R_OK):
        raise errors.BadRequest(f"No permission to read the {what} {path}")
    return os.path.abspath(path)


def is_iso(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            file.seek(_ISO_MARK_AT)
            return file.read(len(_ISO_MARK)) == _ISO_MARK
    except OSError:
        return False


def size(text: str) -> str:
    """The text itself, once it is known to be a size."""
    parse_size(text)
    return text


def disk(text: str, name: str) -> Json:
    """`10GiB` is a new disk, anything else a file used in place; options after commas: bus=sata, ro, or a
    limit such as total_ops=500 or read_bytes=50MiB/s."""
    found: Json = {"name": name}
    # A file of exactly this name wins, and options are taken from the end: a path may contain commas.
    words = [text] if os.path.isfile(text) else text.split(",")
    while len(words) > 1 and _disk_option(words[-1], found):
        words.pop()
    origin = ",".join(words)
    if "/" not in origin and not os.path.exists(origin) and origin[:1].isdigit():
        found["size"] = size(origin)
    else:
        found["path"] = existing_file(origin, "disk image")
    return found


def _disk_option(word: str, found: Json) -> bool:
    key, _, value = word.partition("=")
    if word in ("ro", "readonly"):
        found["readonly"] = True
    elif key == "bus":
        if value not in BUSES:
            raise errors.BadRequest(f"Unknown disk bus {value!r}", hint=f"use one of: {', '.join(BUSES)}")
        found["bus"] = value
    elif key == "name" and value:
        found["name"] = value
    elif key in _DISK_LIMITS:
        found.setdefault("qos", {})[_DISK_LIMITS[key]] = value
    elif "=" in word and "/" not in word and "." not in key:
        raise errors.BadRequest(
            f"Unknown disk option {key!r}",
            hint="use bus=BUS, name=NAME, ro or a limit such as total_ops=500 or read_bytes=50MiB/s",
        )
    else:
        return False
    return True


def cdrom(path: str, name: str, machine: str) -> Json:
    # Firmware boots from a CD-ROM drive only, not from a virtio disk: SATA on q35, IDE on the old pc.
    bus = "ide" if machine == "pc" or machine.startswith("pc-i440fx") else "sata"
    return {
        "name": name,
        "path": existing_file(path, "CD-ROM image"),
        "media": "cdrom",
        "bus": bus,
        "readonly": True,
    }


def network(text: str) -> Json | None:
    """`user`, a model, `user,model=e1000,mac=..`, or `none`."""
    first, *options = text.split(",")
    if first == "none":
        if options:
            raise errors.BadRequest("A network `none` takes no options")
        return None
    found: Json = {"mode": "user"}
    if first in NIC_MODELS:
        found["model"] = first
    elif first != "user":
        raise errors.BadRequest(
            f"Unknown network {first!r}", hint=f"use user, none or a model: {', '.join(NIC_MODELS)}"
        )
    for option in options:
        key, _, value = option.partition("=")
        if key == "model" and value in NIC_MODELS:
            found["model"] = value
        elif key == "mac" and value:
            found["mac"] = value.lower()
        elif key == "host_access" and value in ("on", "off"):
            found["host_access"] = value == "on"
        else:
            raise errors.BadRequest(
                f"Unknown network option {option!r}",
                hint=f"use model=MODEL ({', '.join(NIC_MODELS)}), mac=MAC or host_access=on",
            )
    return found


def forward(text: str) -> Json:
    """`[ADDRESS:]HOST:GUEST[/udp]`; an IPv6 address stands in brackets."""
    ports, _, protocol = text.partition("/")
    address = ""
    if ports.startswith("["):
        address, bracket, ports = ports[1:].partition("]:")
        if not bracket:
            raise _bad_forward(text)
    parts = ports.split(":")
    if len(parts) == 3 and not address:
        address = parts.pop(0)
        if not address:
            raise _bad_forward(text)
    if len(parts) != 2 or protocol not in ("", "tcp", "udp"):
        raise _bad_forward(text)
    found: Json = {"host": _port(parts[0], text), "guest": _port(parts[1], text)}
    if protocol:
        found["protocol"] = protocol
    if address:
        found["address"] = _address(address, text)
    return found


def _address(address: str, text: str) -> str:
    import ipaddress

    try:
        return str(ipaddress.ip_address("0.0.0.0" if address == "*" else address))
    except ValueError:
        raise _bad_forward(text) from None


def _port(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise _bad_forward(whole)
    return int(text)


def _bad_forward(text: str) -> errors.BadRequest:
    return errors.BadRequest(
        f"Not a port forward: {text!r}",
        hint="write it [ADDRESS:]HOSTPORT:GUESTPORT[/udp], such as 2222:22; ports are 1 to 65535",
    )


def boot_order(text: str) -> list[str]:
    """`cdrom,disk`, or QEMU's letters: `dc`."""
    words = text.split(",")
    if len(words) == 1 and text not in _BOOT_WORDS:
        words = list(text)
    order = [_BOOT_WORDS.get(word.strip(), "") for word in words]
    if not text or "" in order or len(set(order)) != len(order):
        raise errors.BadRequest(
            f"Not a boot order: {text!r}", hint="list disk, cdrom and network, such as cdrom,disk"
        )
    return order


def pairs(texts: Sequence[str], what: str) -> dict[str, str]:
    """`key=value` words."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise errors.BadRequest(f"Not a {what}: {text!r}", hint="write it key=value")
        found[key] = value
    return found


def build(options: Mapping[str, Any], read_text: Callable[[str], str]) -> Json:
    """The spec that the options ask for; what is not given is left to its default."""
    spec: Json = {}
    disks: list[Json] = []
    machine = options.get("machine") or ""
    _origin(spec, disks, options.get("image"), options.get("root_size"), machine)
    for number, text in enumerate(options.get("disk") or (), 1):
        disks.append(disk(text, f"disk{number}"))
    for path in options.get("cdrom") or ():
        taken = sum(item.get("media") == "cdrom" for item in disks)
        disks.append(cdrom(path, "cdrom" if not taken else f"cdrom{taken + 1}", machine))
    if disks:
        spec["disks"] = disks
    _cpu(spec, options)
    memory = options.get("memory")
    _put(spec, "memory", {"size": size(memory) if memory else None, "hugepages": options.get("hugepages")})
    if options.get("numa"):
        spec["numa"] = options["numa"]
    _put(
        spec,
        "machine",
        {
            "type": machine,
            "architecture": options.get("arch"),
            "firmware": options.get("firmware"),
            "accelerator": options.get("accel"),
        },
    )
    _put(spec, "boot", _boot(options))
    _networks(spec, options.get("network") or (), options.get("forward") or ())
    _put(spec, "display", {"vga": options.get("vga"), "vnc": options.get("vnc")})
    if options.get("user_data"):
        spec["user_data"] = read_text(options["user_data"])
    if options.get("restart_policy"):
        spec["restart_policy"] = options["restart_policy"]
    if options.get("label"):
        spec["labels"] = pairs(options["label"], "label")
    if options.get("agent") is not None:
        spec["wait_for_agent"] = options["agent"]
    if not any(spec.get(key) for key in ("image", "boot", "disks")):
        raise errors.BadRequest(
            "Nothing to boot from", hint="name an image (see inn image list), a disk image, or --kernel"
        )
    return spec


# Of a copy of a template only these can be told; the rest is its template's.
_OWN_OF_COPY: Final = frozenset(
    {"name", "template", "forward", "label", "restart_policy", "agent", "timeout_s", "detach", "remove",
     "keep", "no_wait", "interactive", "cold"}
)  # fmt: skip


def of_copy(base: Json, options: Mapping[str, Any]) -> Json:
    """The spec of a copy of a template with the spec `base`. Raises BadRequest for what it cannot have."""
    other = sorted(
        name
        for name, value in options.items()
        if value not in (None, (), "", False) and name not in _OWN_OF_COPY
    )
    if other:
        words = ", ".join("an IMAGE" if name == "image" else "--" + name.replace("_", "-") for name in other)
        raise errors.BadRequest(
            f"A copy has what its template has: {words} cannot be given with --from", hint="leave it out"
        )
    networks = [dict(one) | {"mac": "", "forward": []} for one in base["networks"]]
    if options.get("forward"):
        if not networks:
            raise errors.BadRequest("--forward needs a network, and the template has none")
        networks[0]["forward"] = [forward(text) for text in options["forward"]]
    display = base["display"] | {"vnc": "socket" if base["display"]["vnc"] else ""}
    spec = base | {
        "networks": networks,
        "display": display,
        "labels": pairs(options.get("label") or (), "label"),
    }
    if options.get("restart_policy"):
        spec["restart_policy"] = options["restart_policy"]
    if options.get("agent") is not None:
        spec["wait_for_agent"] = options["agent"]
    return spec


def _cpu(spec: Json, options: Mapping[str, Any]) -> None:
    given = {field: options.get(option) for field, option in _CPU_OPTIONS.items()}
    given["features"] = list(options.get("cpu_features") or ()) or None
    given["pin"] = pairs(options.get("cpu_pin") or (), "pin of a vCPU") or None
    _put(spec, "cpu", given)
    promised = {field: options.get(option) for field, option in _CPU_QOS_OPTIONS.items()}
    if any(promised.values()):
        spec["qos"] = {}
        _put(spec["qos"], "cpu", promised)


def _origin(spec: Json, disks: list[Json], image: str | None, root_size: str | None, machine: str) -> None:
    """Where it boots from: an image of the catalogue, a disk image of one's own, or an ISO."""
    root: Json = {"name": "root"}
    if image and is_path(image):
        path = existing_file(image, "disk image")
        if is_iso(path):
            disks.append(cdrom(path, "cdrom", machine))
        else:
            root["copy_of"] = path
    elif image:
        spec["image"] = image
    if root_size:
        root["size"] = size(root_size)
    if len(root) > 1:
        disks.insert(0, root)


def _boot(options: Mapping[str, Any]) -> Json:
    kernel, initrd = options.get("kernel"), options.get("initrd")
    if initrd and not kernel:
        raise errors.BadRequest("An initrd needs a kernel", hint="give --kernel FILE, too")
    return {
        "kernel": existing_file(kernel, "kernel") if kernel else None,
        "initrd": existing_file(initrd, "initrd") if initrd else None,
        "append": options.get("append"),
        "order": boot_order(options["boot"]) if options.get("boot") is not None else None,
    }


def _networks(spec: Json, texts: Sequence[str], forwards: Sequence[str]) -> None:
    found = [network(text) for text in texts]
    if None in found and len(found) > 1:
        raise errors.BadRequest("--network none excludes other networks")
    networks = [item for item in found if item is not None]
    if forwards:
        if found and not networks:
            raise errors.BadRequest("--forward needs a network", hint="leave out --network none")
        networks = networks or [{"mode": "user"}]
        networks[0] = networks[0] | {"forward": [forward(text) for text in forwards]}
    if found or networks:
        spec["networks"] = networks


def _put(spec: Json, key: str, values: Json) -> None:
    given = {name: value for name, value in values.items() if value not in (None, "")}
    if given:
        spec[key] = given


def read_user_data(path: str) -> str:
    """cloud-init user data from a file, or from standard input for `-`."""
    import sys

    if path == "-":
        data = sys.stdin.buffer.read(_USER_DATA_MAX + 1)
    else:
        with open(existing_file(path, "user data file"), "rb") as file:
            data = file.read(_USER_DATA_MAX + 1)
    if len(data) > _USER_DATA_MAX:
        raise errors.BadRequest(f"User data is longer than 512 KiB: {path}")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise errors.BadRequest(f"User data is not UTF-8 text: {path}") from None
