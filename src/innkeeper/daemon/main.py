"""The daemon: puts store, agent and API together, and lets go of every VM when it stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from innkeeper.agent import facts as host_facts
from innkeeper.agent.context import CHECKPOINTS, Context, crash_at
from innkeeper.agent.leaks import Leaks
from innkeeper.agent.pool import Pool
from innkeeper.agent.qos.keeper import QosKeeper
from innkeeper.agent.reconcile import Reconciler
from innkeeper.agent.recovery import recover
from innkeeper.agent.sampling.sampler import Sampler
from innkeeper.agent.service import LiveService
from innkeeper.agent.snapshots import SnapshotKeeper
from innkeeper.agent.tune.ballooning import Balloons
from innkeeper.agent.tune.merging import Merging, see
from innkeeper.api.app import create_app
from innkeeper.api.deps import ApiDeps
from innkeeper.clock import SystemClock
from innkeeper.daemon.doctor import Doctor
from innkeeper.daemon.host import LEASE_TTL_S, HeldLease, LocalHost, keep_record, write_record
from innkeeper.daemon.hugepages import HugePagePools
from innkeeper.daemon.images import Images
from innkeeper.daemon.settings import Settings
from innkeeper.daemon.state import prepare
from innkeeper.drivers.cgroup import Cgroups
from innkeeper.drivers.ksm import Claim, Ksm
from innkeeper.drivers.run import SystemRunner
from innkeeper.engine.qemu.engine import QemuEngine
from innkeeper.errors import BadRequest, Failed, InnkeeperError
from innkeeper.images.imagedir import sweep_staging
from innkeeper.paths import Paths, default_paths
from innkeeper.store.repo import Repo
from innkeeper.store.sqlite import SqliteStore
from innkeeper.telemetry.lasting import lasting
from innkeeper.telemetry.log import setup
from innkeeper.version import version

log = logging.getLogger("innkeeper.daemon")

# History is for watchers that reconnect; each verb writes about five revisions.
KEPT_REVISIONS = 5000
COMPACT_INTERVAL_S = 60.0
# Streams end at once when we stop; a request under way gets this long.
SHUTDOWN_GRACE_S = 3


@dataclass(frozen=True)
class Options:
    state: str | None = None
    tcp: str | None = None
    take_over: bool = False
    report_fd: int | None = None  # whoever started us in the background reads there why we could not


def main(options: Options = Options()) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code; an error is one line on stderr."""
    setup()
    try:
        asyncio.run(_serve(default_paths(options.state), options))
    except InnkeeperError as error:
        print(f"inn: {error}", file=sys.stderr)
        if options.report_fd is not None:
            with contextlib.suppress(OSError):
                os.write(options.report_fd, json.dumps(error.to_dict(), default=str).encode())
        return error.exit_code
    return 0


async def _serve(paths: Paths, options: Options) -> None:
    _raise_descriptor_limit()
    _come_before_vms()
    clock, runner = SystemClock(), SystemRunner()
    host = LocalHost(paths.state)
    prepare(paths, host.machine_id, take_over=options.take_over)
    async with contextlib.AsyncExitStack() as stack:
        store = await SqliteStore.open(paths.store, clock)
        stack.push_async_callback(store.close)
        repo = Repo(store)
        ctx = _context(paths, runner, repo, clock, host)
        stack.push_async_callback(ctx.cgroups.close)
        pool = Pool(ctx)
        await pool.recover(ctx.engine.find_running())
        # Adopting VMs needs nothing of what the host's examination may take seconds for.
        (records, revision), host.facts = await asyncio.gather(recover(ctx), host_facts.gather(runner, paths))
        sweep_staging(paths.images)
        reconciler = Reconciler(ctx)
        stack.push_async_callback(reconciler.close)
        stack.push_async_callback(pool.close)
        snapshots = SnapshotKeeper(ctx)
        stack.push_async_callback(snapshots.close)
        sampler = Sampler(ctx)
        stack.push_async_callback(sampler.close)
        settings, pools = await _host_settings(ctx, host, stack)
        lease = HeldLease(await store.lease_grant(LEASE_TTL_S))
        await write_record(host, repo, clock, lease)
        await reconciler.load(records, revision)
        await snapshots.load()
        log.info("ready state=%s instances=%d running=%d", paths.state, len(records), len(ctx.running))

        async def look_again() -> None:
            await write_record(host, repo, clock, lease)

        deps = ApiDeps(
            store=store,
            repo=repo,
            paths=paths,
            clock=clock,
            live=LiveService(ctx),
            metering=sampler,
            images=Images(paths, runner, repo, clock),
            doctor=Doctor(runner, paths, host, Leaks(ctx), ctx.cgroups),
            host=host.name,
            version=version(),
            mode="system" if os.geteuid() == 0 else "session",
            started_at=clock.time(),
            look_again=look_again,
            hugepages=pools,
            settings=settings,
        )
        for name, work in {
            "the reconciler": reconciler.run,
            "following the snapshots": snapshots.run,
            "the pool of copies": pool.run,
            "reading counters": sampler.run,
            "keeping control groups": QosKeeper(ctx).run,
            "merging of pages": settings.run,
            "looking after balloons": Balloons(ctx, lambda: host.settings.vms_memory).run,
            "the host's record": lambda: keep_record(host, repo, clock, lease, ctx.freed),
            "compacting the store": lambda: _compact(store),
        }.items():
            stack.push_async_callback(_cancel, asyncio.create_task(lasting(name, work, clock)))
        sockets = await stack.enter_async_context(_listening(paths, options.tcp))
        await _run_server(deps, sockets)


def _context(paths: Paths, runner: SystemRunner, repo: Repo, clock: SystemClock, host: LocalHost) -> Context:
    cgroups = host.cgroups = Cgroups.detect(paths.state)
    engine = QemuEngine(runner, clock, cgroups)
    ctx = Context(paths, runner, engine, repo, clock, host, cgroups=cgroups)
    if point := os.environ.get("INNKEEPER_CRASH_AT"):
        ctx.checkpoint = crash_at(_known_checkpoint(point))
    return ctx


async def _host_settings(
    ctx: Context, host: LocalHost, stack: contextlib.AsyncExitStack
) -> tuple[Settings, HugePagePools]:
    """What was decided about this host, in force again."""
    settings = Settings(host, ctx.paths.state)
    settings.begin(lambda mode: Merging(Ksm(), Claim(), ctx.clock, mode, lambda: see(ctx)))
    stack.push_async_callback(settings.close)
    pools = HugePagePools(host, ctx.paths.state)
    await pools.restore()
    return settings, pools


def _known_checkpoint(name: str) -> str:
    if name not in CHECKPOINTS:
        raise BadRequest(
            f"INNKEEPER_CRASH_AT: no checkpoint {name!r}", hint=f"there are: {', '.join(CHECKPOINTS)}"
        )
    return name


async def _run_server(deps: ApiDeps, sockets: list[socket.socket]) -> None:
    config = uvicorn.Config(
        create_app(deps),
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="websockets-sansio",
        timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
        server_header=False,
    )
    server = uvicorn.Server(config)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        deps.closing.set()
        server.should_exit = True

    # uvicorn's own handlers would end us by raising the signal again; we have VMs to let go of.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    await server.serve(sockets=sockets)


@contextlib.asynccontextmanager
async def _listening(paths: Paths, tcp: str | None) -> AsyncIterator[list[socket.socket]]:
    """Our sockets; only we may connect to the unix one. The store's lock is held, so an old socket
    file is nobody's."""
    paths.api_socket.unlink(missing_ok=True)
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        unix.bind(str(paths.api_socket))
    finally:
        os.umask(before)
    unix.listen(512)
    sockets = [unix]
    try:
        if tcp:
            sockets.append(_tcp_socket(tcp))
        paths.daemon_pid.write_text(f"{os.getpid()}\n")
        yield sockets
    finally:
        for one in sockets:
            one.close()
        paths.api_socket.unlink(missing_ok=True)
        paths.daemon_pid.unlink(missing_ok=True)


def _tcp_socket(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise BadRequest(f"Not an address to listen on: {address!r}", hint="write it like 127.0.0.1:8080")
    try:
        return socket.create_server(
            (host.strip("[]"), int(port)), family=socket.AF_INET6 if "[" in host else socket.AF_INET
        )
    except OSError as error:
        raise Failed(f"Cannot listen on {address}: {error.strerror}", hint="choose another port") from error


async def _compact(store: SqliteStore) -> None:
    while True:
        await asyncio.sleep(COMPACT_INTERVAL_S)
        try:
            floor = await store.revision() - KEPT_REVISIONS
            if floor > 0:
                await store.compact(floor)
        except InnkeeperError as error:
            log.warning("compacting the store failed: %s", error)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _come_before_vms() -> None:
    """Started from a shell the daemon is in the scheduling group of its session (sched(7), autogroup). Where
    VMs keep every CPU busy, 10 ms of its work took 0.1 s there, and 11 ms with this, which only root may do;
    as a service it has a weight instead (innkeeper.service)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("-10")


def _raise_descriptor_limit() -> None:
    """Each VM takes about six descriptors of ours; the usual soft limit of 1024 is for old select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
