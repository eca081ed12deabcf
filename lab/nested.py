"""The lab itself: a VM that is a hypervisor host, with this source tree inside.

It lives in a state directory of its own (INNKEEPER_LAB, default ~/.cache/innkeeper-lab), so that its image
is kept, and whatever runs on this host otherwise has nothing to do with it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from innkeeper.client.client import Client, connect
from innkeeper.client.instance import Instance
from innkeeper.errors import Failed, InnkeeperError, NotFound, Unsupported
from lab import image, payload

NAME: Final = "lab"
ROOT: Final = "/opt/inn"
BULK: Final = "bulk"
SPEC: Final[dict[str, Any]] = {
    "cpu": {"count": 2},
    "memory": {"size": "4GiB"},
    "numa": {"nodes": [{"cpus": "0", "memory": "2GiB"}, {"cpus": "1", "memory": "2GiB"}]},
    "machine": {"iommu": "intel"},
    "disks": [{"name": "root", "size": "12GiB"}],
}
# Added to the kernel's command line. Linux takes the TSCs of an emulated CPU for unsynchronized: then every
# look at the clock is an access to the HPET, and KVM has no clock that guests could read by themselves. What
# mitigations guard against, an emulated CPU does not have. Nothing is to be set up by cloud-init, which would
# take half a minute of CPU beside the tests. Pages of 1 GiB are found in one piece at boot only.
APPEND: Final = (
    "tsc=reliable no_timer_check nokaslr mitigations=off cloud-init=disabled hugepagesz=1G hugepages=1:1"
)
# So much slower than an ordinary machine may the lab be, by the tests' own deadlines; others may use
# the machine, too.
PATIENCE: Final = 20
# Before a command in ROOT that is of the tests or the benchmarks.
LAB_ENVIRONMENT: Final = f"INNKEEPER_TEST_PATIENCE={PATIENCE} INNKEEPER_LAB_TINY=$(echo {ROOT}/tiny/*)"
_READY_S: Final = 300.0
_LOOK_EVERY_S: Final = 2.0
_SILENT_S: Final = 300.0
_LAST_WORDS: Final = 3000  # bytes
_OUTPUT: Final = "/run/lab-output"
_STATUS: Final = "/run/lab-status"
Say = Callable[[str], None]

# Directories on the module path, and the command as pip would have made it.
_UNPACK: Final = f"""
set -e
mkdir -p {ROOT} && cd {ROOT}
rm -rf src tests bench lab && tar -xzf /tmp/source.tar.gz && rm /tmp/source.tar.gz
[ -d packages ] || tar -xf /dev/disk/by-id/virtio-{BULK}
site=$(/usr/bin/python3 -c 'import site; print(site.getsitepackages()[0])')
mkdir -p "$site" && printf '%s\\n' {ROOT}/packages {ROOT}/src > "$site/inn.pth"
printf '#!/usr/bin/python3\\nfrom innkeeper.cli.entry import run\\nrun()\\n' > /usr/bin/inn
chmod 0755 /usr/bin/inn
"""
# Loaded by udev some time after the agent answers; asked for by name it is there when modprobe returns.
_MODULES: Final = "modprobe kvm_amd || modprobe kvm_intel; modprobe -a vhost_net vfio_pci softdog"


class NestedHost:
    """`start` it, `put` the code in, `run` commands; `close` removes it, unless it is to be kept."""

    def __init__(self, state: Path | None = None, *, say: Say = lambda text: None) -> None:
        self.state = state or default_state()
        self._say = say
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.client: Client = connect(str(self.state), notify=say)
        self._vm: Instance = self.client.instances.handle(NAME)

    def start(self, spec: Mapping[str, Any] = SPEC) -> None:
        """Until its agent answers and its KVM is there. One that was kept is taken as it is."""
        kept = {one["name"]: one for one in self.client.instances.list_data()}.get(NAME)
        if kept and kept["image"] != image.image_name():  # which is removed now
            self._vm.remove(force=True)
        name = image.ensure_image(self.client, self._progress)
        bulk = payload.bulk_disk(self.state, self._tiny())
        disks = [*spec["disks"], {"name": BULK, "path": str(bulk), "readonly": True}]
        wanted = {**spec, "image": name, "disks": disks, "boot": self._boot(name)}
        if NAME in {one["name"] for one in self.client.instances.list_data()}:
            self._vm.refresh()
            if self._vm.state == "running" and within(wanted, self._vm.data["spec"]):
                self._say("the lab that was kept is used again")
                return
            self._vm.remove(force=True)
        begun = time.monotonic()
        self._vm = self.client.instances.create(
            wanted, name=NAME, start=True, wait="ready", timeout_s=_READY_S
        )
        self.check("sh", "-c", _MODULES)
        self._say(f"the lab runs, after {time.monotonic() - begun:.0f} s")

    def put_code(self) -> None:
        """This tree, as it is now, with all it needs. Raises Unsupported for another Python version."""
        python = self.output("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
        if python != payload.PYTHON:
            raise Unsupported(
                f"The lab has Python {python}, and this environment {payload.PYTHON}: its compiled packages"
                " would not load there",
                hint="make .venv with the distribution's own python3: rm -r .venv && make setup",
            )
        self._vm.write_file("/tmp/source.tar.gz", payload.source_archive())
        self.check("sh", "-c", _UNPACK)

    def fetch(self, path: str) -> bytes:
        """A file of the lab."""
        return b"".join(self._vm.read_file(path))

    def follow(self, script: str, deadline_s: float) -> int:
        """Run a script of the shell, its output shown every other second; its exit status. To be asked for
        news as often as `inn exec` asks takes a sixth of the emulated CPU. Raises Failed at the deadline."""
        detached = shlex.join(["sh", "-c", f"({script}) >{_OUTPUT} 2>&1; echo $? >{_STATUS}"])
        begin = f"rm -f {_STATUS}; : >{_OUTPUT}; setsid {detached} </dev/null >/dev/null 2>&1 &"
        self.check("sh", "-c", begin)
        end, shown = time.monotonic() + deadline_s, 0
        heard = time.monotonic()
        while True:
            time.sleep(_LOOK_EVERY_S)
            try:
                status = self._status()
                output = self.fetch(_OUTPUT)
            except Failed as error:  # a machine that is busy for a while must not cost what ran so far
                if time.monotonic() > heard + _SILENT_S:
                    raise
                self._say(f"looking again: {error.message}")
                continue
            heard = time.monotonic()
            sys.stdout.buffer.write(output[shown:])
            sys.stdout.flush()
            shown = len(output)
            if status is not None:
                return status
            if time.monotonic() > end:
                raise Failed(f"no end in the lab after {deadline_s:.0f} s: {script[:100]}")

    def _status(self) -> int | None:
        """That of the script, once it has ended and its number is written whole."""
        try:
            text = self.fetch(_STATUS).decode()
        except NotFound:
            return None
        return int(text) if text.endswith("\n") else None

    def check(self, *argv: str) -> None:
        """Run to success. Raises Failed with the command's own words."""
        self.output(*argv)

    def output(self, *argv: str) -> str:
        """What a command prints. Raises Failed when it fails."""
        done = self._vm.exec(argv)
        if done.status != 0:
            words = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise Failed(f"{argv[0]} failed in the lab: {words[-500:]}")
        return done.stdout.decode()

    def close(self, *, keep: bool = False) -> None:
        """Remove the VM and end the daemon; `keep` leaves both for the next time."""
        if keep:
            self._say(f"kept: INNKEEPER_STATE={self.state} inn exec {NAME} -- bash")
            return
        try:
            self._tell_its_end()
            self._vm.remove(force=True)
        finally:
            subprocess.run([*self._inn("serve"), "--stop"], env=self._env(), check=False)

    def _tell_its_end(self) -> None:
        """Of a lab that ended by itself, while there is something left of it: how, and its last words."""
        with contextlib.suppress(InnkeeperError):
            data = self._vm.refresh().data
            if data["state"] != "running":
                said = b"".join(self._vm.logs(tail_bytes=_LAST_WORDS)).decode(errors="replace")
                self._say(f"the lab ended by itself: {data.get('ended')}; the end of its console:\n{said}")

    def _tiny(self) -> Path:
        """The directory of the image for the guests of the lab, built if there is none."""
        if "tiny" not in {one["name"] for one in self.client.images.list()}:
            self.client.images.build("tiny", on_progress=self._progress)
        return self.state / "images" / str(self.client.images.get("tiny")["id"])

    def _boot(self, name: str) -> dict[str, str]:
        """Directly, without firmware and boot loader reading a kernel in real mode."""
        disk = self.state / "images" / str(self.client.images.get(name)["id"]) / "disk.qcow2"
        own = image.kernel_of(disk, self.state)
        return {"kernel": str(own.kernel), "initrd": str(own.initrd), "append": f"{own.append} {APPEND}"}

    def _progress(self, event: Mapping[str, Any]) -> None:
        if event.get("detail") == "":
            self._say(f"building an image: {event.get('stage')}")

    def _inn(self, verb: str) -> list[str]:
        return [str(Path(sys.executable).with_name("inn")), verb]

    def _env(self) -> dict[str, str]:
        return {**os.environ, "INNKEEPER_STATE": str(self.state)}


def default_state() -> Path:
    given = os.environ.get("INNKEEPER_LAB")
    return Path(given) if given else Path.home() / ".cache" / "innkeeper-lab"


def within(wanted: Any, found: Any) -> bool:
    """Whether `found`, a whole spec, has all that `wanted` says; what `wanted` leaves out may be anything."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            key in found and within(value, found[key]) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(found, list) and len(wanted) == len(found) and all(map(within, wanted, found))
    return bool(wanted == found)
