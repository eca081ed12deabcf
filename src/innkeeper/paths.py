"""Every file name on disk, in one place.

STATE (system: /var/lib/innkeeper, session: $XDG_DATA_HOME/innkeeper, or INNKEEPER_STATE)
  store.db, store.db.lock     what users asked for; the lock is held while a daemon runs
  daemon.log                  the daemon's own log when it was started in the background
  history                     what the host used, of the last day
  settings.json               what was decided about the host: overcommit, merging of pages
  cache/                      found out about this host; may be deleted
    kvm.json                  the verdict on /dev/kvm, valid for one boot
    qemu.json                 versions and machine types of the QEMU binaries
  images/<sha256>/            immutable, content-addressed
  instances/<uid>/            what belongs to one instance and goes with it
    root.qcow2, <disk>.qcow2  its disks
    vars.fd                   UEFI variables
    seed.iso                  cloud-init seed
    console.log               serial output, kept
    qemu.log                  what QEMU wrote to stderr
    history                   what it used, of the last day (agent/sampling)
  layers/                     frozen disk layers, shared; named by the moment they are of
  snapshots/<id>/             ram (or ram.zst), device-state, vars.fd, plan.json, chains.json
RUN (system: /run/innkeeper, session: $XDG_RUNTIME_DIR/innkeeper, or INNKEEPER_STATE/run)
  api.sock, daemon.pid
  vm/<12 hex of uid>/         one running VM: launch.json and its sockets (names kept short, since
                              a unix socket's path is limited to 107 bytes, unix(7)); of a template
                              also moment/, what copies start from
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from innkeeper.errors import BadRequest, Unsupported

# sun_path holds 108 bytes with the terminating NUL (unix(7)); the longest name under run/ is
# "/vm/" + 12 + "/console.sock".
SOCKET_PATH_MAX: Final = 107
NEXT_SUFFIX: Final = "+"
_LONGEST_UNDER_RUN: Final = len("/vm/") + 12 + len(NEXT_SUFFIX) + len("/console.sock")


@dataclass(frozen=True)
class InstanceFiles:
    """The durable files of one instance."""

    directory: Path

    @property
    def console_log(self) -> Path:
        return self.directory / "console.log"

    @property
    def qemu_log(self) -> Path:
        return self.directory / "qemu.log"

    @property
    def history(self) -> Path:
        return self.directory / "history"

    @property
    def chains(self) -> Path:
        return self.directory / "chains.json"

    @property
    def seed(self) -> Path:
        return self.directory / "seed.iso"

    @property
    def uefi_vars(self) -> Path:
        return self.directory / "vars.fd"

    def disk(self, name: str) -> Path:
        return self.directory / f"{name}.qcow2"


@dataclass(frozen=True)
class SnapshotFiles:
    """The files of one snapshot."""

    directory: Path

    @property
    def chains(self) -> Path:
        return self.directory / "chains.json"

    @property
    def plan(self) -> Path:
        return self.directory / "plan.json"

    @property
    def device_state(self) -> Path:
        return self.directory / "device-state"

    @property
    def uefi_vars(self) -> Path:
        return self.directory / "vars.fd"

    @property
    def token(self) -> Path:
        """Of a template's moment: which one it is; there once all the rest is."""
        return self.directory / "token"

    def ram(self, piece: str = "", *, compressed: bool) -> Path:
        """`piece`: which of several pieces of RAM; empty: the first."""
        name = f"ram-{piece}" if piece else "ram"
        return self.directory / (f"{name}.zst" if compressed else name)


@dataclass(frozen=True)
class RuntimeFiles:
    """The files of one running VM; gone after a reboot of the host."""

    directory: Path

    @property
    def launch(self) -> Path:
        return self.directory / "launch.json"

    @property
    def plan(self) -> Path:
        return self.directory / "plan.json"

    @property
    def qmp(self) -> Path:
        return self.directory / "qmp.sock"

    @property
    def console(self) -> Path:
        return self.directory / "console.sock"

    @property
    def agent(self) -> Path:
        return self.directory / "agent.sock"

    @property
    def vnc(self) -> Path:
        return self.directory / "vnc.sock"

    @property
    def moment(self) -> SnapshotFiles:
        """Of a template: what it stands still at. Its RAM is with its QEMU."""
        return SnapshotFiles(self.directory / "moment")


@dataclass(frozen=True)
class Paths:
    state: Path
    run: Path

    @property
    def store(self) -> Path:
        return self.state / "store.db"

    @property
    def daemon_log(self) -> Path:
        return self.state / "daemon.log"

    @property
    def host_history(self) -> Path:
        return self.state / "history"

    @property
    def kvm_verdict(self) -> Path:
        return self.state / "cache" / "kvm.json"

    @property
    def qemu_machines(self) -> Path:
        return self.state / "cache" / "qemu.json"

    @property
    def cpu_models(self) -> Path:
        return self.state / "cache" / "cpu-models.json"

    @property
    def images(self) -> Path:
        return self.state / "images"

    @property
    def instances(self) -> Path:
        return self.state / "instances"

    @property
    def layers(self) -> Path:
        return self.state / "layers"

    @property
    def snapshots(self) -> Path:
        return self.state / "snapshots"

    @property
    def machines(self) -> Path:
        return self.run / "vm"

    @property
    def moments(self) -> Path:
        return self.run / "moments"

    @property
    def api_socket(self) -> Path:
        return self.run / "api.sock"

    @property
    def daemon_pid(self) -> Path:
        return self.run / "daemon.pid"

    @property
    def start_lock(self) -> Path:
        """Held by a command line while it starts the daemon, so that two do not start two."""
        return self.run / "start.lock"

    def instance(self, uid: str) -> InstanceFiles:
        return InstanceFiles(self.instances / uid)

    def snapshot(self, ident: str) -> SnapshotFiles:
        return SnapshotFiles(self.snapshots / ident)

    def runtime(self, uid: str) -> RuntimeFiles:
        return RuntimeFiles(self.machines / uid.replace("-", "")[:12])

    def next_runtime(self, uid: str) -> RuntimeFiles:
        """Of the process that is to take over from the one that runs; renamed to `runtime` then."""
        return RuntimeFiles(self.machines / (uid.replace("-", "")[:12] + NEXT_SUFFIX))


def default_paths(state: str | None = None) -> Paths:
    """Where this user's daemon lives; `state` (or INNKEEPER_STATE) names a daemon of its own."""
    chosen = state or os.environ.get("INNKEEPER_STATE")
    if chosen:
        root = Path(chosen).absolute()
        paths = Paths(state=root, run=root / "run")
    elif os.geteuid() == 0:
        paths = Paths(state=Path("/var/lib/innkeeper"), run=Path("/run/innkeeper"))
    else:
        data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
        paths = Paths(state=Path(data) / "innkeeper", run=_user_run_dir() / "innkeeper")
    if len(os.fsencode(paths.run)) + _LONGEST_UNDER_RUN > SOCKET_PATH_MAX:
        raise BadRequest(
            f"The state directory's path is too long for unix sockets: {paths.state}",
            hint=f"choose one of at most {SOCKET_PATH_MAX - _LONGEST_UNDER_RUN - len('/run')} bytes",
        )
    return paths


def _user_run_dir() -> Path:
    """$XDG_RUNTIME_DIR, or where none is set (su, cron, containers) a directory of our own in /tmp,
    which must belong to us and to nobody else."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime)
    fallback = Path("/tmp") / f"inn-{os.geteuid()}"
    make_private_dir(fallback)
    return fallback


def make_private_dir(path: Path) -> None:
    """Create `path` for us alone, or check that an existing one is ours: in /tmp somebody else may have
    made it first. Raises Unsupported when it is not. An existing directory keeps its mode: it may be
    one the user has for other things, too."""
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        info = path.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
            raise Unsupported(
                f"{path} belongs to somebody else",
                hint="remove it, or choose another directory (INNKEEPER_STATE, XDG_RUNTIME_DIR)",
            ) from None
