"""Pools of huge pages: what is written to sysfs, what is read back, and what is refused and undone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from api_harness import serve
from cli_harness import Inn, inn, server

from fakes.api_server import ApiServer
from innkeeper.daemon.host import LocalHost
from innkeeper.daemon.hugepages import HugePagePools
from innkeeper.drivers import hugepages
from innkeeper.drivers.hugepages import Pool
from innkeeper.errors import NoCapacity, NotFound, Unsupported, WrongState
from innkeeper.units import GiB, MiB

__all__ = ["inn", "server"]  # fixtures


class Kernel(Pool):
    """One that finds only so many pages in one piece."""

    most = 100

    def write(self, pages: int) -> None:
        super().write(min(pages, self.most))


def tree(root: Path, total: int = 10, free: int = 10, reserved: int = 0) -> Path:
    for top in ("sys/kernel/mm/hugepages", "sys/devices/system/node/node1/hugepages"):
        place = root / top / "hugepages-2048kB"
        place.mkdir(parents=True)
        for name, number in (("nr", total), ("free", free), ("resv", reserved)):
            (place / f"{name}_hugepages").write_text(f"{number}\n")
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text("MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\n")
    return root


def test_what_the_host_has(tmp_path: Path) -> None:
    tree(tmp_path, 10, 6, 2)
    found = hugepages.pool(2 * MiB, root=tmp_path)
    assert (found.total, found.unused) == (10, 4)
    assert hugepages.pool(2 * MiB, 1, tmp_path).total == 10
    with pytest.raises(Unsupported, match="no huge pages of 1GiB; it has: 2MiB"):
        hugepages.pool(GiB, root=tmp_path)
    with pytest.raises(NotFound, match="no NUMA node 3"):
        hugepages.pool(2 * MiB, 3, tmp_path)


def kernel(root: Path) -> Kernel:
    return Kernel(hugepages.pool(2 * MiB, root=root).directory, 2 * MiB)


def test_what_was_really_reserved_is_read_back_and_a_shortfall_undone(tmp_path: Path) -> None:
    pool = kernel(tree(tmp_path))
    assert hugepages.resize(pool, 100, GiB) == 100
    with pytest.raises(NoCapacity, match="found 100 of 120 huge pages of 2MiB: 20 are missing") as caught:
        hugepages.resize(pool, 120, GiB)
    assert caught.value.details == {"missing": 20, "most": 100}
    assert pool.total == 100


def test_more_than_there_is_memory_is_refused_before_the_kernel_is_asked(tmp_path: Path) -> None:
    pool = kernel(tree(tmp_path))
    with pytest.raises(NoCapacity, match="512 MiB is available: 744 pages too many; at most 266 fit now"):
        hugepages.resize(pool, 1010, 512 * MiB)
    assert pool.total == 10


def test_pages_in_use_stay(tmp_path: Path) -> None:
    pool = kernel(tree(tmp_path, 10, 6, 2))
    with pytest.raises(WrongState, match="6 huge pages of 2MiB are in use, so that 5 are too few"):
        hugepages.resize(pool, 5, GiB)
    assert hugepages.resize(pool, 6, 0) == 6


def test_without_the_right_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(pool: Pool, pages: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Pool, "write", denied)
    with pytest.raises(Unsupported, match="Only root"):
        hugepages.resize(hugepages.pool(2 * MiB, root=tree(tmp_path)), 20, GiB)


def test_pools_are_made_again_after_a_boot(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", 0, 0)
    state = tmp_path / "state"
    state.mkdir()
    host = LocalHost(state, root=root)

    async def scenario() -> None:
        pools = HugePagePools(host, state, root)
        assert await pools.resize(2 * MiB, 40, None) == 40
        with pytest.raises(NoCapacity):  # 128 MiB stay for the host
            await pools.resize(2 * MiB, 40 + 512, None)
        place = hugepages.pool(2 * MiB, root=root)
        place.write(0)
        await pools.restore()
        assert place.total == 0, "in the same boot somebody may have given them back"
        host.boot_id = "another"
        await pools.restore()
        assert place.total == 40
        assert json.loads((state / "hugepages.json").read_text())["boot_id"] == "another"
        (place.directory / "free_hugepages").write_text("40\n")
        await pools.resize(2 * MiB, 0, None)
        host.boot_id = "third"
        await pools.restore()
        assert place.total == 0

    asyncio.run(scenario())


def test_over_the_api(tmp_path: Path) -> None:
    asked: list[tuple[int, int, int | None]] = []

    class Pools:
        async def resize(self, page_bytes: int, pages: int, node: int | None) -> int:
            asked.append((page_bytes, pages, node))
            if pages > 1000:
                raise NoCapacity("too many", details={"missing": pages - 1000})
            return pages

    async def scenario() -> None:
        async with serve(tmp_path) as api:
            await api.refused("PATCH", "/host", {"hugepages": {"2MiB": 1}}, status=409)
            object.__setattr__(api.deps, "hugepages", Pools())
            answer = await api.call("PATCH", "/host", {"hugepages": {"2MiB": 512}, "node": 1})
            assert answer["name"] == "h1" and asked == [(2 * MiB, 512, 1)]
            error = await api.refused("PATCH", "/host", {"hugepages": {"2MiB": 2000}}, status=409)
            assert error["details"] == {"missing": 1000}
            for body in ({"hugepages": {"2 pages": 1}}, {"hugepages": {"2MiB": -1}}, {"hugepages": {}}, {}):
                await api.refused("PATCH", "/host", body, status=400)

    asyncio.run(scenario())


def test_on_the_command_line(inn: Inn, server: ApiServer) -> None:
    node = {"id": 0, "hugepages": [{"page_bytes": 2 << 20, "total": 512, "free": 512}]}
    server.answer("PATCH", "/v1/host", {"name": "here", "facts": {"numa": [node]}})
    assert inn("host", "set", "hugepages.2MiB=512", "--node", "0").out == "node 0: 512 x 2MiB\n"
    assert server.requests[-1].json() == {"hugepages": {"2MiB": 512}, "node": 0}
    for wrong in ("hugepages=5", "cpus=5", "hugepages.2MiB=many", "hugepages.x=5", "hugepages.2MiB"):
        assert inn("host", "set", wrong).status == 2
