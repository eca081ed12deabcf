"""User-mode networking: outbound without any set-up, and ports of the host that lead inside."""

from __future__ import annotations

import hashlib
import http.server
import os
import shutil
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vms import traces
from vms.cli import Inn
from vms.daemon import Daemon
from vms.waiting import eventually

pytestmark = pytest.mark.vm

Spec = Callable[..., dict[str, Any]]


class _Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"hello from the host, you asked for {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web_server() -> Iterator[int]:
    """On the host's loopback only: the port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hello)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def forwarded(daemon: Daemon) -> Iterator[tuple[str, int]]:
    """A ready VM, and the port of the host that leads to its port 80."""
    port = free_port()
    networks = [{"forward": [{"host": port, "guest": 80}], "host_access": True}]
    vm = daemon.client.instances.create(
        {"image": "tiny", "networks": networks}, name="web", start=True, wait="ready"
    )
    daemon.watch("web", lambda one: one["addresses"], "has an address", 40.0)
    yield "web", port
    vm.remove(force=True)


def test_the_guest_has_an_address_a_route_and_a_name_server(inn: Inn, shared_vm: str) -> None:
    address = inn("show", shared_vm, "--json").ok().json["addresses"]
    script = "ip -o addr show scope global; ip route; cat /etc/resolv.conf"
    out = inn("exec", shared_vm, "--", "sh", "-c", script).ok().out
    assert address and address[0] in out
    assert "default via" in out and "nameserver" in out


def _fetch_from_gateway(port: int, path: str) -> str:
    # No -T: wget of Debian's busybox 1.35 crashes with a time limit, on any machine.
    gateway = "$(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p')"
    return f"wget -q -O - http://{gateway}:{port}/{path}"


@pytest.mark.skipif(shutil.which("passt") is None, reason="slirp always leads to the host's loopback")
def test_the_guest_does_not_reach_the_loopback_of_the_host(
    inn: Inn, daemon: Daemon, shared_vm: str, web_server: int
) -> None:
    """There may be a daemon that takes orders from whoever connects (`inn serve --tcp`)."""
    daemon.watch(shared_vm, lambda one: one["addresses"], "has an address", 40.0)
    fetch = _fetch_from_gateway(web_server, "path")
    answer = inn("exec", shared_vm, "--", "sh", "-c", f"timeout 5 {fetch} || echo closed").ok()
    assert answer.out == "closed\n"


def test_the_guest_reaches_the_host_where_allowed(
    inn: Inn, forwarded: tuple[str, int], web_server: int
) -> None:
    """Its gateway stands for the host, loopback included (passt(1), --no-map-gw; slirp 10.0.2.2)."""
    answer = inn("exec", forwarded[0], "--", "sh", "-c", _fetch_from_gateway(web_server, "path")).ok()
    assert answer.out == "hello from the host, you asked for /path"


def _fetched(port: int, path: str) -> bytes:
    """Empty while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=30) as answer:
            return bytes(answer.read())
    except OSError:
        return b""


def test_a_forwarded_port_leads_into_the_guest(inn: Inn, forwarded: tuple[str, int]) -> None:
    name, port = forwarded
    script = "mkdir -p /tmp/www && echo from the guest >/tmp/www/index.html && httpd -p 80 -h /tmp/www"
    inn("exec", name, "--", "sh", "-c", script).ok()
    body = eventually(lambda: _fetched(port, ""), "the guest's web server answers", 20.0, every_s=0.2)
    assert body == b"from the guest\n"


def test_a_megabyte_goes_through_a_forward_whole(inn: Inn, forwarded: tuple[str, int]) -> None:
    name, port = forwarded
    data = os.urandom(1 << 20)
    inn("exec", name, "--", "sh", "-c", "mkdir -p /tmp/www; cat >/tmp/www/data", stdin=data).ok()
    inn("exec", name, "--", "sh", "-c", "pidof httpd || httpd -p 80 -h /tmp/www").ok()
    received = eventually(lambda: _fetched(port, "data"), "the data comes", 30.0, every_s=0.2)
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()


def test_connections_of_the_guest_survive_the_daemon(fresh: Callable[..., Daemon], web_server: int) -> None:
    daemon = fresh(images=True)
    spec = {"image": "tiny", "networks": [{"host_access": True}]}
    vm = daemon.client.instances.create(spec, name="vm", start=True, wait="ready")
    daemon.watch("vm", lambda one: one["addresses"], "has an address", 40.0)
    daemon.restart()
    script = _fetch_from_gateway(web_server, "again")
    answer = daemon.client.instances.handle("vm").exec(["sh", "-c", script])
    assert answer.stdout.endswith(b"/again")
    assert vm.name == "vm"


def test_a_port_that_is_taken_is_refused(inn: Inn, daemon: Daemon, boot_disk: Any) -> None:
    files = traces.instance_files(daemon.paths)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ["run", boot_disk, "-d", "--memory", "16MiB", "--name", "own", "--forward", f"{port}:22"]
        inn(*words).failed(4, f"port {port}", "in use", "choose another")
    assert "own" not in daemon.names() and traces.instance_files(daemon.paths) == files


def test_two_vms_cannot_forward_the_same_port(inn: Inn, daemon: Daemon, boot_disk: Any) -> None:
    port = free_port()
    words = ["run", boot_disk, "-d", "--memory", "16MiB", "--forward", f"{port}:22", "--name"]
    inn(*words, "own-1").ok()
    try:
        inn(*words, "own-2").failed(4, f"port {port}")
    finally:
        inn("rm", "-f", "own-1").ok()
    inn(*words, "own-2").ok()  # the port is free again
    inn("rm", "-f", "own-2").ok()


def test_a_udp_port_is_forwarded(inn: Inn, daemon: Daemon, small: Spec) -> None:
    port = free_port()
    networks = [{"forward": [{"protocol": "udp", "host": port, "guest": 53}], "host_access": True}]
    daemon.client.instances.create(small(networks=networks), name="own", start=True, wait="running")
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
            pytest.raises(OSError, match="in use"),
        ):
            probe.bind(("127.0.0.1", port))
    finally:
        daemon.client.instances.handle("own").remove(force=True)
