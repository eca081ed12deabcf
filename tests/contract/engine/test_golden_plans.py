"""The recorded command lines of tests/golden are not only stable: the installed QEMU takes them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from engine_harness import QemuBench

from helpers import run
from innkeeper.drivers import hugepages
from innkeeper.drivers.inherit import lockable_bytes
from innkeeper.drivers.run import which
from innkeeper.engine.base import DiskPlan, FirmwarePlan, KernelPlan, LaunchPlan, Layer, NicPlan, RunState
from innkeeper.engine.memory import Ram
from innkeeper.engine.qemu.wiring import Descriptors
from innkeeper.errors import Unsupported
from vms.daemon import short_directory

pytestmark = pytest.mark.vm


def _recorded() -> dict[str, LaunchPlan]:
    path = Path(__file__).parents[2] / "golden" / "test_argv.py"
    spec = importlib.util.spec_from_file_location("golden_argv", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plans: dict[str, LaunchPlan] = module.PLANS
    return plans


PLANS = _recorded()


@pytest.mark.parametrize("name", PLANS)
def test_qemu_takes_the_plan(name: str) -> None:
    if PLANS[name].memory.locked and lockable_bytes() is not None:
        pytest.skip("needs the right to lock memory")

    async def scenario() -> None:
        bench = QemuBench(short_directory())
        try:
            plan = _with_real_files(PLANS[name], bench)
            machine = await bench.begin(plan)
            assert await machine.run_state() in (RunState.RUNNING, RunState.PAUSED)
            await machine.kill()
            await machine.detach()
            await bench.check_nothing_left()
        finally:
            await bench.close()

    with _pages_for(PLANS[name]):
        run(scenario())


@contextlib.contextmanager
def _pages_for(plan: LaunchPlan) -> Iterator[None]:
    """Huge pages for 64 MiB of RAM, as long as it takes."""
    if not plan.memory.page_bytes:
        yield
        return
    pool = hugepages.pool(plan.memory.page_bytes)
    before = pool.total
    try:
        hugepages.resize(pool, before + (64 << 20) // plan.memory.page_bytes, 1 << 30)
    except Unsupported:
        pytest.skip("only root may reserve huge pages")
    try:
        yield
    finally:
        hugepages.resize(pool, before, 0)


def _with_real_files(plan: LaunchPlan, bench: QemuBench) -> LaunchPlan:
    """The same plan, with files of its own in place of the recorded paths, and this host's accelerator."""
    if which(plan.binary) is None:
        pytest.skip(f"{plan.binary} is not installed")
    made = bench.plan()
    firmware = plan.firmware and FirmwarePlan(Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), bench.root / "vars.fd")
    if firmware:
        if not firmware.code.exists():
            pytest.skip("no UEFI firmware is installed")
        shutil.copyfile("/usr/share/OVMF/OVMF_VARS_4M.fd", firmware.variables)
    kernel = plan.kernel and KernelPlan(
        _some_kernel(bench.root), _blank(bench.root / "initrd"), "console=ttyS0"
    )
    return replace(
        plan,
        uid=made.uid,
        accelerator="tcg",
        cpu_model="max",
        disks=tuple(_real_disk(disk, bench.root) for disk in plan.disks),
        nics=tuple(_free_ports(nic) for nic in plan.nics),
        kernel=kernel,
        firmware=firmware,
        memory_bytes=plan.memory_bytes if plan.memory.ram else 64 << 20,
        console_log=made.console_log,
        qemu_log=made.qemu_log,
        vnc=plan.vnc if plan.vnc in ("", "socket") else f"127.0.0.1:{_free_port(5900)}",
    )


def _real_disk(disk: DiskPlan, root: Path) -> DiskPlan:
    chain: list[Layer] = []
    for depth in reversed(range(len(disk.chain))):
        layer = disk.chain[depth]
        path = root / f"{disk.name}-{depth},comma.{layer.format}"
        below = ["-b", str(chain[0].path), "-F", chain[0].format] if chain else []
        size = [] if chain else ["1M"]
        argv = ["qemu-img", "create", "-q", "-f", layer.format, *below, str(path), *size]
        subprocess.run(argv, check=True)
        chain.insert(0, Layer(path, layer.format))
    return replace(disk, chain=tuple(chain))


def _free_ports(nic: NicPlan) -> NicPlan:
    forwards = tuple((protocol, address, _free_port(), guest) for protocol, address, _, guest in nic.forwards)
    backend = nic.backend if nic.backend == "slirp" or shutil.which("passt") else "slirp"
    return replace(nic, forwards=forwards, backend=backend)


def _free_port(above: int = 0) -> int:
    import socket

    while True:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port: int = server.getsockname()[1]
        if port > above:
            return port


def _blank(path: Path) -> Path:
    path.write_bytes(b"\0" * 512)
    return path


def _some_kernel(root: Path) -> Path:
    """Enough of a bzImage for QEMU to load: a boot sector with the signature and a setup header that
    says protocol 2.0 (Documentation/x86/boot.rst)."""
    header = bytearray(512 * 8)
    header[0x1F1] = 4  # setup_sects
    header[0x1FE:0x200] = b"\x55\xaa"
    header[0x202:0x206] = b"HdrS"
    header[0x206:0x208] = (0x0206).to_bytes(2, "little")
    header[0x211] = 1  # loaded high
    header[0x22C:0x230] = (0x37FFFFFF).to_bytes(4, "little")  # initrd_addr_max
    header[0x238:0x23C] = (2048).to_bytes(4, "little")  # cmdline_size
    path = root / "kernel"
    path.write_bytes(bytes(header))
    path.chmod(0o600)
    return path


def test_nothing_is_opened_that_is_not_closed(tmp_path: Path) -> None:
    import os

    async def scenario() -> None:
        before = len(os.listdir("/proc/self/fd"))
        with Descriptors(Ram()) as wiring:
            wiring.image(_blank(tmp_path / "a"), writable=True)
            wiring.readable(_some_kernel(tmp_path))
            wiring.listener(tmp_path / "s")
            wiring.network_pair(0)
            await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) == before

    run(scenario())
