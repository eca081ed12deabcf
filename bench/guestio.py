"""Disk and network inside the tiny guest, beside QEMU tuned by hand.

Three guests run side by side: ours; the same argument list by hand, with a raw disk on io_uring and an
iothread; and that with slirp instead of passt. The guest's own dd and wget do the work: under TCG they
are the bottleneck, so these numbers compare paths, and say little about the disk or the network.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from bench.lib.byhand import Hand, exec_by_hand
from bench.lib.lab import Lab
from bench.lib.sample import Budget, Sample, interleave
from innkeeper.client.instance import Instance

MIB = 1 << 20
DROP_CACHES = "echo 3 >/proc/sys/vm/drop_caches"
DISK_MIB = 256

Exec = Callable[[str], str]


def run(lab: Lab) -> list[Sample]:
    disk_mib, net_mib = lab.count(DISK_MIB, 32), lab.count(128, 16)
    with ExitStack() as stack:
        guests = _guests(lab, stack)
        port = stack.enter_context(_server(net_mib * MIB))
        works: dict[str, Callable[[], float]] = {}
        for name, guest in guests.items():
            if name != "slirp":
                write = f"dd if=/dev/zero of=/dev/vda bs=1M count={disk_mib} conv=fsync"
                works[f"write-{name}"] = _rate(guest, write, disk_mib)
                read = f"dd if=/dev/vda of=/dev/null bs=1M count={disk_mib}"
                works[f"read-{name}"] = _rate(guest, f"{DROP_CACHES}; {read}", disk_mib)
            works[f"net-{name}"] = _rate(guest, _fetch(port), net_mib)
        for work in works.values():
            work()
        values = interleave(lab.count(7, 1), works)
    return [
        *_pair("read", values, f"dd of {disk_mib} MiB from /dev/vda, host cache warm"),
        *_pair("write", values, f"dd of {disk_mib} MiB to /dev/vda, fsync at the end"),
        *_pair("net", values, f"wget of {net_mib} MiB from the host, passt"),
        Sample("guestio.net-slirp", "MiB/s", values["net-slirp"], note="the same through QEMU's slirp"),
    ]


def _pair(what: str, values: dict[str, list[float]], note: str) -> list[Sample]:
    hand = f"guestio.{what}-hand"
    budget = Budget(0.98, hand, at_least=True)
    return [
        Sample(f"guestio.{what}", "MiB/s", values[f"{what}-ours"], budget, note=note),
        Sample(hand, "MiB/s", values[f"{what}-hand"]),
    ]


def _guests(lab: Lab, stack: ExitStack) -> dict[str, Exec]:
    instances = lab.daemon.client.instances
    spec = {
        "image": "tiny",
        "disks": [{"name": "data", "size": f"{DISK_MIB}MiB"}],
        "networks": [{"host_access": True}],
    }
    ours = instances.create(spec, name="io", start=True, wait="ready")
    stack.callback(ours.remove, force=True)
    guests: dict[str, Exec] = {"ours": lambda command: _exec(ours, command)}
    for name in ("hand", "slirp"):
        template = instances.create(spec, name=f"io-{name}")
        stack.callback(template.remove, force=True)
        run_directory = Path(template.refresh().data["paths"]["run"])
        argv = _tuned(template.argv(), lab.directory / f"{name}.raw", slirp=name == "slirp")
        hand = Hand(argv, run_directory)
        stack.callback(hand.end)
        hand.boot()
        agent = run_directory / "agent.sock"
        guests[name] = lambda command, agent=agent: exec_by_hand(agent, ["/bin/sh", "-c", command])  # type: ignore[misc]
    return guests


def _exec(vm: Instance, command: str) -> str:
    done = vm.exec(["sh", "-c", command])
    return (done.stdout + done.stderr).decode(errors="replace")


def _tuned(argv: list[str], disk: Path, *, slirp: bool) -> list[str]:
    """Raw instead of qcow2, io_uring, an iothread; slirp instead of passt where asked for."""
    with disk.open("wb") as file:
        file.truncate(DISK_MIB * MIB)
    tuned = list(argv)
    for index, word in enumerate(tuned):
        if not word.startswith("{"):
            continue
        node = json.loads(word)
        if node.get("node-name") == "disk-data-file":
            node |= {"filename": str(disk), "aio": "io_uring"}
        elif node.get("node-name") == "disk-data":
            node = {"driver": "raw", "node-name": "disk-data", "file": "disk-data-file", "discard": "unmap"}
        elif node.get("driver") == "virtio-blk-pci":
            node["iothread"] = "io0"
        elif slirp and node.get("type") == "stream":
            node = {"type": "user", "id": node["id"]}
        tuned[index] = json.dumps(node)
    return [*tuned[:1], "-object", "iothread,id=io0", *tuned[1:]]


def _rate(guest: Exec, command: str, size_mib: int) -> Callable[[], float]:
    """MiB/s of a command, by the guest's clock (/proc/uptime: 10 ms), so that no agent is measured."""
    script = f"read a x </proc/uptime; {command} && read b x </proc/uptime && echo took $a $b"

    def work() -> float:
        said = guest(script)
        found = re.search(r"took ([\d.]+) ([\d.]+)", said)
        if found is None:
            raise RuntimeError(f"{command} in the guest: {said.strip()[-200:]}")
        return size_mib / max(0.01, float(found[2]) - float(found[1]))

    return work


def _fetch(port: int) -> str:
    """From the host's loopback: slirp and, with host_access, passt show it at the gateway's address."""
    gateway = "ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'"
    return f"wget -q -O /dev/null http://$({gateway}):{port}/"


@contextlib.contextmanager
def _server(size: int) -> Iterator[int]:
    """An HTTP server on the host's loopback that sends `size` bytes; its port."""
    block = bytes(MIB)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            for _ in range(size // MIB):
                self.wfile.write(block)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
