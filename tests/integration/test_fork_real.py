"""Forks of real guests: who a copy is, what it shares with nobody, and what a fork must not disturb."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest

from innkeeper.errors import BadRequest, InnkeeperError, NotFound, Unsupported
from vms import forks, templates
from vms.daemon import Daemon
from vms.forks import DISK, MEMORY, Guest
from vms.terminal import CTRL_BRACKET, Terminal
from vms.waiting import eventually

pytestmark = pytest.mark.vm
LONG = bool(os.environ.get("INNKEEPER_LONG"))
long_form = pytest.mark.skipif(not LONG, reason="of the long form of the fork tests: set INNKEEPER_LONG=1")


@pytest.fixture(scope="module")
def parent(host: Daemon) -> Guest:
    """With a disk and a NIC; each test may leave marks on it."""
    return forks.boot(host, "parent")


@pytest.fixture(autouse=True)
def nothing_remains(host: Daemon) -> Iterator[None]:
    """Each test's own VMs go, the parent stays; and nobody leaves anything."""
    yield
    print(f"the daemon's log:\n{host.tail()}")  # shown when the test fails
    for name in host.names():
        if name != "parent":
            with contextlib.suppress(NotFound):  # it went by itself meanwhile
                host.client.instances.handle(name).remove(force=True)
    forks.assert_nothing_remains(host)


def fork(guest: Guest, name: str = "copy", **options: Any) -> Guest:
    guest.instance.fork(name=name, **options)
    return Guest(guest.daemon, name)


def mac(guest: Guest) -> str:
    return guest.sh("cat /sys/class/net/eth0/address")


def clock_error_s(guest: Guest) -> float:
    """How far the guest's clock is from ours, at least; it tells whole seconds."""
    before = time.time()
    told = int(guest.sh("date +%s"))
    after = time.time()
    return max(0.0, before - (told + 1), told - after)


# -- who it is ------------------------------------------------------------------------------------------


def test_each_copy_is_somebody_of_its_own(host: Daemon, parent: Guest) -> None:
    parent.sh("echo parents-own-id >/etc/machine-id; date -s @1000000000")
    uptime = float(parent.sh("read -r up rest </proc/uptime; echo $up"))
    addresses, boot = mac(parent), parent.boot_id()
    parent.instance.fork(count=2, name="copy-{}")
    guests = [Guest(host, "copy-1"), Guest(host, "copy-2")]
    random = {guest.sh("head -c 16 /dev/urandom | od -An -tx1") for guest in (*guests, parent)}
    assert len(random) == 3, "two guests draw the same random numbers"
    assert parent.sh("hostname") == "parent" and mac(parent) == addresses
    for guest in guests:
        assert guest.sh("hostname; cat /etc/hostname").split() == [guest.name] * 2
        assert mac(guest) != addresses and mac(guest) == _own_mac(host, guest.name)
        assert re.fullmatch("[0-9a-f]{32}", guest.sh("cat /etc/machine-id"))
        assert guest.boot_id() == boot, "it was booted"
        assert uptime < float(guest.sh("read -r up rest </proc/uptime; echo $up")) < uptime + 60
        assert clock_error_s(guest) <= 1.0
        assert host.status(guest.name)["note"] == ""
    assert len({guest.sh("cat /etc/machine-id") for guest in guests}) == 2
    assert len({mac(guest) for guest in guests}) == 2
    parent.sh("date -s @$1", str(int(time.time())))
    # A new lease, so that the copy is on the network with its new address at once.
    host.watch("copy-1", lambda vm: vm["addresses"], "has an address", 20.0)


def _own_mac(host: Daemon, name: str) -> str:
    from innkeeper.engine.qemu.argv import mac_address

    return mac_address(host.show(name)["uid"], 0)


def test_names(host: Daemon, parent: Guest) -> None:
    inn = host.inn
    assert inn("fork", "parent", "--count", "2", "--no-wait").ok().out.split() == ["parent-1", "parent-2"]
    assert inn("fork", "parent", "--name", "ci-{}", "--count", "2", "--no-wait").ok().out.split() == [
        "ci-1",
        "ci-2",
    ]
    inn("fork", "parent", "--name", "ci-{}", "--count", "2").failed(4, "ci-1")
    assert sorted(host.names()) == ["ci-1", "ci-2", "parent", "parent-1", "parent-2"]
    answer = inn("fork", "parent", "--name", "gone", "--rm")
    assert answer.ok().out == "gone\n" and re.search(r"stood still for \d+ ms", answer.err)
    with pytest.raises(InnkeeperError):
        Guest(host, "gone").instance.exec(["poweroff"], timeout_s=5)
        Guest(host, "gone").instance.wait("stopped", timeout_s=20)
        host.watch("gone", lambda vm: False, "is removed", 20.0)


# -- what it shares with nobody -----------------------------------------------------------------------------

# Writes numbered lines in memory and on disk until it is stopped, each with the name of the machine it is
# on now, and blocks of one pattern over and over: what another machine wrote would show.
_WRITER = f"""
n=0
while [ ! -e /stop ]; do
    n=$((n + 1)); read -r name </proc/sys/kernel/hostname
    echo "$n $name" >>{MEMORY}/log; echo "$n $name" >>{DISK}/log
    yes "$n $name" | head -c 8192 >{MEMORY}/block.$((n % 8))
    cp {MEMORY}/block.$((n % 8)) {DISK}/block.$((n % 8))
    [ $((n % 4)) != 0 ] || sync
    usleep 30000
done
touch /stopped
"""
_MIXED = f"for file in {MEMORY}/block.* {DISK}/block.*; do uniq <$file | head -c 2000 | wc -l; done | sort -u"


def _start_writer(guest: Guest) -> None:
    guest.sh('echo "$1" >/writer; setsid sh /writer >/dev/null 2>&1 </dev/null &', _WRITER)


def _stop_writer(guest: Guest) -> None:
    guest.sh("touch /stop; while [ ! -e /stopped ]; do usleep 20000; done")


def _check_lines(guest: Guest, ancestors: list[str]) -> int:
    """All lines are there, by those it descends from, in that order, and then by itself."""
    logs = [guest.sh(f"cat {place}/log").splitlines() for place in (MEMORY, DISK)]
    for lines in logs:
        assert [int(line.split()[0]) for line in lines] == list(range(1, len(lines) + 1))
        names = [line.split()[1] for line in lines]
        order = [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]
        assert order == [*ancestors, guest.name][: len(order)], f"{guest.name} has lines of {order}"
        assert names[-1] == guest.name
    assert logs[0] == logs[1]
    # A whole line repeated, and at the end a part of it.
    assert {int(count) for count in guest.sh(_MIXED).split()} <= {1, 2}
    return len(logs[0])


def _check_file_system(guest: Guest, tmp_path: Path) -> None:
    """On the host, from the files of its disk as they are."""
    guest.sh(f"sync; umount {DISK}")
    raw = tmp_path / f"{guest.name}.raw"
    top = forks.chain(guest.daemon, guest.name)[0]
    argv = ["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", str(top), str(raw)]
    subprocess.run(argv, check=True, timeout=60)
    done = subprocess.run(["e2fsck", "-fn", str(raw)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@long_form
def test_nobody_sees_what_another_writes(host: Daemon, tmp_path: Path) -> None:
    root = forks.boot(host, "root", networks=[])
    root.write("before")
    _start_writer(root)
    guests: dict[str, list[str]] = {"root": []}
    for name, origin in (("a", "root"), ("b", "root"), ("aa", "a"), ("c", "root"), ("aaa", "aa")):
        fork(Guest(host, origin), name)
        guests[name] = [*guests[origin], origin]
        # All of them go on writing meanwhile.
        time.sleep(0.3)
    Guest(host, "b").write("only-b")
    for name, ancestors in guests.items():
        guest = Guest(host, name)
        _stop_writer(guest)
        count = _check_lines(guest, ancestors)
        assert count > 10
        sums = guest.sums()
        assert sums[f"{MEMORY}/before"] == sums[f"{DISK}/before"]
        assert (f"{MEMORY}/only-b" in sums) == (name == "b") == (f"{DISK}/only-b" in sums)
    for name in guests:
        _check_file_system(Guest(host, name), tmp_path)


def test_two_disks(host: Daemon) -> None:
    disks = [{"name": "data", "size": "64MiB"}, {"name": "more", "size": "32MiB"}]
    twin = forks.boot(host, "twin", disks=disks, networks=[])
    twin.sh("echo from-twin | dd of=/dev/vdb bs=512 conv=fsync 2>/dev/null")
    copy = fork(twin)
    copy.sh("echo from-copy | dd of=/dev/vdb bs=512 conv=fsync 2>/dev/null")
    read = "echo 3 >/proc/sys/vm/drop_caches; head -c 9 /dev/vdb"
    assert (twin.sh(read), copy.sh(read)) == ("from-twin", "from-copy")
    assert {len(forks.chain(host, name, disk)) for name in ("twin", "copy") for disk in ("data", "more")} == {
        2
    }


@long_form
def test_a_copy_started_again_boots_from_its_own_disk(parent: Guest) -> None:
    copy = fork(parent)
    copy.write("own")
    boot = copy.boot_id()
    copy.instance.kill()
    copy.instance.start(wait="ready")
    assert copy.boot_id() != boot and copy.sh("hostname") == "copy"
    copy.sh(f"mkdir -p {MEMORY} {DISK} && mount /dev/vda {DISK} && ls {DISK}/own")
    assert mac(copy) == _own_mac(copy.daemon, "copy")
    again = fork(copy, "again")
    assert again.sh("hostname") == "again"


# -- what a fork must not disturb -----------------------------------------------------------------------


def test_a_running_command_and_a_console_go_on(host: Daemon, parent: Guest) -> None:
    script = (
        "i=0; while [ $i -lt 150 ]; do i=$((i + 1)); echo $i; echo say-$i >/dev/ttyS0; usleep 20000; done"
    )
    with Terminal(host.inn, ["console", "parent"]) as viewer:
        viewer.expect(b"attached")
        stream = host.inn.popen(
            "exec", "parent", "--", "sh", "-c", script, stdin=DEVNULL, stdout=PIPE, stderr=PIPE
        )
        viewer.expect(b"say-5\r\n")
        for name in ("one", "two"):
            fork(parent, name)
        said = viewer.expect(b"say-150\r\n", 60.0)
        out, err = stream.communicate(timeout=60)
        assert (stream.returncode, err) == (0, b"")
        assert [int(line) for line in out.split()] == list(range(1, 151))
        assert [int(found) for found in re.findall(rb"say-(\d+)\r\n", said)] == list(range(6, 151))
        viewer.type(b"\recho typed-$((1 + 1))\r")
        viewer.expect(b"typed-2")
        viewer.type(CTRL_BRACKET)
        assert viewer.left() == 0


class _Peer:
    """A TCP server that sends numbered lines and keeps what it is sent."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.received = b""
        self.sent = 0
        self._done = threading.Event()
        self._writer = threading.Thread(target=self._serve, daemon=True)
        self._writer.start()

    def _serve(self) -> None:
        self._connection, _ = connection, _ = self._server.accept()
        self._reader = threading.Thread(target=self._read, args=(connection,), daemon=True)
        self._reader.start()
        while not self._done.is_set():
            self.sent += 1
            connection.sendall(b"%d\n" % self.sent)
            time.sleep(0.002)

    def _read(self, connection: socket.socket) -> None:
        while data := connection.recv(65536):
            self.received += data

    def stop(self) -> None:
        """No more lines. The connection stays open both ways: once one of them is closed, passt of 2023 may
        send again what was received already, as if it were new."""
        self._done.set()
        self._writer.join(30)

    def close(self) -> None:
        self._connection.shutdown(socket.SHUT_RDWR)
        self._reader.join(30)
        self._connection.close()
        self._server.close()


# Numbered lines both ways, until it is stopped.
_CLIENT = r"""
gateway=$(ip route | sed -n 's/default via \([^ ]*\).*/\1/p')
(i=0; while [ ! -e /stop ]; do i=$((i + 1)); echo $i; usleep 2000; done; echo end) | nc $gateway $1 >/received
"""


def test_an_open_connection_survives_several_forks(host: Daemon) -> None:
    networks = [{"mode": "user", "host_access": True}]
    host.client.instances.create(
        {"image": "tiny", "networks": networks}, name="client", start=True, wait="ready"
    )
    guest = Guest(host, "client")
    host.watch("client", lambda vm: vm["addresses"], "has an address", 40.0)
    peer = _Peer()
    guest.sh(
        'echo "$1" >/client; setsid sh /client "$2" >/dev/null 2>&1 </dev/null &', _CLIENT, str(peer.port)
    )
    forks_made = 4 if LONG else 2
    for number in range(forks_made):
        seen = len(peer.received)
        fork(guest, f"copy-{number}", wait="running")
        eventually(lambda seen=seen: len(peer.received) > seen, "lines go on coming")  # type: ignore[misc]
    peer.stop()
    wait = 'until [ "$(tail -n 1 /received)" = "$1" ]; do usleep 10000; done; cat /received'
    received = guest.sh(wait, str(peer.sent)).split()
    guest.sh("touch /stop")
    eventually(lambda: peer.received.endswith(b"end\n"), "its last line", 30.0)
    peer.close()
    sent = [int(line) for line in peer.received.removesuffix(b"end\n").split()]
    print(f"{len(sent)} lines out and {len(received)} lines in, over {forks_made} forks")
    assert sent == list(range(1, len(sent) + 1))
    assert [int(line) for line in received] == list(range(1, peer.sent + 1))


@long_form
def test_a_forwarded_port_stays_the_parents(host: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    networks = [{"mode": "user", "forward": [{"host": port, "guest": 80}]}]
    host.client.instances.create(
        {"image": "tiny", "networks": networks}, name="web", start=True, wait="ready"
    )
    web = Guest(host, "web")
    host.watch("web", lambda vm: vm["addresses"], "has an address", 40.0)
    web.sh("mkdir /www; hostname >/www/index.html; httpd -p 80 -h /www")
    copy = fork(web)
    copy.sh("echo copy >/www/index.html")
    assert host.show("copy")["spec"]["networks"][0]["forward"] == []
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while data := connection.recv(4096):
            answer += data
    assert answer.endswith(b"web\n")


# -- of what ------------------------------------------------------------------------------------------------


@long_form
def test_a_fork_of_a_fork_five_deep_and_generations_that_go(host: Daemon) -> None:
    guest = forks.boot(host, "g0", networks=[])
    guest.write("g0")
    for depth in range(1, 6):
        guest = fork(guest, f"g{depth}")
        guest.write(f"g{depth}")
        assert guest.sh("hostname") == f"g{depth}"
    for depth in range(6):
        Guest(host, f"g{depth}").check(*(f"g{number}" for number in range(depth + 1)))
    assert len(forks.chain(host, "g5")) == 6
    # The first, then the middle, then the rest: what is left stands on what is kept for it.
    for name in ("g0", "g2", "g3"):
        Guest(host, name).remove()
        forks.assert_nothing_remains(host)
        Guest(host, "g5").check(*(f"g{number}" for number in range(6)))
    Guest(host, "g5").write("last")
    assert len(list(host.paths.layers.iterdir())) >= 4
    for name in ("g1", "g4", "g5"):
        Guest(host, name).remove()  # and then no layer is left, see nothing_remains


def test_a_paused_vm(host: Daemon, parent: Guest) -> None:
    parent.instance.pause()
    try:
        for name in ("one", "two"):
            copy = fork(parent, name)
            assert copy.sh("hostname") == name
            assert host.status("parent")["state"] == "paused"
    finally:
        parent.instance.resume()
    assert parent.sh("hostname") == "parent"


@long_form
def test_a_stopped_vm(host: Daemon) -> None:
    guest = forks.boot(host, "still", networks=[])
    guest.write("before")
    guest.sh(f"umount {DISK}")
    guest.instance.stop(timeout_s=30)
    guest.instance.fork(count=2, name="link-{}")
    guest.instance.fork(name="off", start=False)
    assert host.status("off")["state"] == "stopped"
    guest.instance.start(wait="ready")
    for name in ("link-1", "link-2", "still"):
        one = Guest(host, name)
        one.sh(f"mkdir -p {DISK}; mount /dev/vda {DISK}; ls {DISK}/before && touch {DISK}/by-$1", name)
    listed = {name: Guest(host, name).sh(f"ls {DISK}") for name in ("link-1", "link-2", "still")}
    assert all(f"by-{name}" in text and text.count("by-") == 1 for name, text in listed.items())
    assert Guest(host, "link-1").sh("hostname") == "link-1"


@long_form
@pytest.mark.parametrize(
    ("machine", "network", "bus"),
    [({"firmware": "uefi"}, "virtio", "virtio"), ({"type": "pc"}, "e1000", "ide"), ({}, "e1000e", "sata")],
    ids=["uefi", "pc-ide-e1000", "q35-sata-e1000e"],
)
def test_other_machines(host: Daemon, machine: dict[str, str], network: str, bus: str) -> None:
    disks = [{"name": "data", "size": "64MiB", "bus": bus}]
    networks = [{"mode": "user", "model": network}]
    spec = {"image": "tiny", "machine": machine, "disks": disks, "networks": networks}
    host.client.instances.create(spec, name="other", start=True, wait="ready")
    other = Guest(host, "other")
    disk = "/dev/vda" if bus == "virtio" else "/dev/sda"
    other.sh(
        "modprobe -qa ahci sd_mod || true;"
        f"until echo other | dd of={disk} conv=fsync 2>/dev/null; do usleep 50000; done"
    )
    for _ in range(2):
        copy = fork(other)
        copy.sh(f"echo copy! | dd of={disk} conv=fsync 2>/dev/null")
        read = f"echo 3 >/proc/sys/vm/drop_caches; head -c 5 {disk}"
        assert (other.sh(read), copy.sh(read)) == ("other", "copy!")
        assert copy.sh("hostname") == "copy"
        copy.remove()


# -- what is refused ----------------------------------------------------------------------------------------


def test_refusals_leave_the_parent_alone(host: Daemon, parent: Guest, tmp_path: Path) -> None:
    pid = host.show("parent")["pid"]
    with pytest.raises(NotFound):
        Guest(host, "nobody").instance.fork()
    with pytest.raises(BadRequest):
        parent.instance.fork(count=0)
    with pytest.raises(BadRequest, match="number"):
        parent.instance.fork(count=2, name="same")
    host.inn("fork", "parent", "--count", "0").failed(2, "count")
    host.inn("fork", "parent", "--count", "1000").failed(4, "memory")
    own = tmp_path / "own.raw"
    own.write_bytes(bytes(1 << 20))
    spec = {"image": "tiny", "disks": [{"name": "own", "path": str(own)}], "networks": []}
    host.client.instances.create(spec, name="inplace", start=True, wait="running")
    with pytest.raises(Unsupported, match="in place"):
        Guest(host, "inplace").instance.fork()
    assert sorted(host.names()) == ["inplace", "parent"]
    assert host.show("parent")["pid"] == pid and parent.sh("hostname") == "parent"


# -- a whole system ------------------------------------------------------------------------------------------


@long_form
@pytest.mark.slow
def test_debian(host: Daemon, debian_image: Path) -> None:
    host.stop()
    templates.register(host.state, "debian", debian_image)
    host.start()
    spec = {"image": "debian", "memory": {"size": "512MiB"}}
    host.client.instances.create(spec, name="deb", start=True, wait="ready")
    deb = Guest(host, "deb")
    host.watch("deb", lambda vm: vm["addresses"], "has an address", 60.0)
    deb.sh("systemctl is-system-running --wait || true")
    tell = "hostnamectl --static; cat /etc/machine-id; ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"
    keyed = fork(deb, "keyed", ssh_keys=True)
    plain = fork(deb, "plain")
    told = [guest.sh(tell).splitlines() for guest in (deb, keyed, plain)]
    names, ids, keys = zip(*told, strict=True)
    assert names == ("deb", "keyed", "plain")
    assert len(set(ids)) == 3
    assert keys[0].split()[1] == keys[2].split()[1] != keys[1].split()[1]
    for guest in (keyed, plain):
        assert clock_error_s(guest) <= 1.0
        host.watch(guest.name, lambda vm: vm["addresses"], "has an address", 60.0)
        assert guest.sh("systemctl is-active systemd-networkd qemu-guest-agent").split() == ["active"] * 2
        assert guest.sh("ip route").startswith("default via")
        # The journal of before the fork is whole, and found under the new machine-id; the file that is
        # written to meanwhile cannot be verified.
        guest.sh("touch /root/written; sync; journalctl --rotate")
        assert guest.sh("journalctl --verify -q 2>&1 | grep FAIL | grep '@' || true") == ""
        assert guest.sh("journalctl -u systemd-networkd -n 1 -o cat").strip() != ""
    assert os.path.exists(forks.chain(host, "plain", "root")[0])


def test_the_command_line_says_what_became_of_it(host: Daemon, parent: Guest) -> None:
    answer = host.inn("fork", "parent", "--name", "told", "--json").ok().json
    assert [one["name"] for one in answer["instances"]] == ["told"]
    assert answer["pause_ms"] == host.status("parent")["pause_ms"] > 0
