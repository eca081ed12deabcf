"""From counters to rates: pure, so every odd case of the world is a line here."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from innkeeper.agent.sampling import hostrates, proc, rates
from innkeeper.agent.sampling.rates import NetworkCounters, Pressure, Sample, ThreadSample, advance, demand
from innkeeper.agent.sampling.reader import Placement
from innkeeper.agent.sampling.tracker import guest_traffic, local_share, tap_traffic
from innkeeper.engine.base import Counters, DiskCounters
from innkeeper.guest.agent import InterfaceCounters

VCPU0 = proc.Thread("vcpu", "vcpu0", 11, 0)
VCPU1 = proc.Thread("vcpu", "vcpu1", 12, 1)
MAIN = proc.Thread("emulator", "emulator", 10)
BEFORE = Sample(
    at=100.0,
    pid=10,
    started_ticks=7,
    cpu_s=50.0,
    minor_faults=1000,
    major_faults=10,
    rss_bytes=1 << 20,
    threads=(ThreadSample(VCPU0, 30.0, 1.0), ThreadSample(VCPU1, 10.0, 2.0), ThreadSample(MAIN, 5.0, 0.0)),
    throttled_s=1.0,
    pressure=Pressure(1.0, 2.0, 3.0),
)
AFTER = replace(
    BEFORE,
    at=105.0,
    cpu_s=56.0,
    minor_faults=1500,
    major_faults=15,
    threads=(ThreadSample(VCPU0, 35.0, 1.5), ThreadSample(VCPU1, 10.5, 4.0), ThreadSample(MAIN, 5.25, 0.0)),
    throttled_s=2.0,
    pressure=Pressure(2.0, 2.0, 5.5),
)


def test_what_happened_between_two_readings() -> None:
    found = rates.process_rates(BEFORE, AFTER)
    assert found is not None
    assert found.used == pytest.approx(1.2)
    assert found.emulator == pytest.approx(0.1)  # what vCPUs (1.0 and 0.1) did not use
    assert [one.used for one in found.threads] == pytest.approx([1.0, 0.1, 0.05])
    assert found.waited == pytest.approx(0.5)  # of vCPUs only
    assert found.throttled == pytest.approx(0.2)
    assert (found.minor_faults, found.major_faults) == pytest.approx((100.0, 1.0))
    assert found.pressure == rates.PressureRate(pytest.approx(0.2), 0.0, pytest.approx(0.5))


@pytest.mark.parametrize("other", [{"pid": 11}, {"started_ticks": 8}, {"at": 100.05}, {"at": 99.0}])
def test_another_process_or_no_time_between_gives_no_rate(other: dict[str, float]) -> None:
    """After a hand-over, a pid used again, two readings at once, a clock that went back."""
    assert rates.process_rates(BEFORE, replace(AFTER, **other)) is None  # type: ignore[arg-type]


def test_threads_come_and_go() -> None:
    plugged = proc.Thread("vcpu", "vcpu2", 13, 2)
    after = replace(AFTER, threads=(AFTER.threads[0], ThreadSample(plugged, 400.0, 0.0)))
    found = rates.process_rates(BEFORE, after)
    assert found is not None
    assert [one.thread.name for one in found.threads] == ["vcpu0"]  # of the new one from the next time on
    assert found.used == pytest.approx(1.2)


def test_no_thread_uses_more_than_a_cpu() -> None:
    """Clock and counter are read apart; a stall between them is not the VM's doing."""
    late = replace(AFTER, threads=(ThreadSample(VCPU0, 40.0, 9.0),))
    found = rates.process_rates(BEFORE, late)
    assert found is not None
    assert (found.threads[0].used, found.threads[0].waited) == (1.0, 1.0)


def test_an_account_the_kernel_does_not_keep_is_not_known() -> None:
    before = replace(BEFORE, threads=(ThreadSample(VCPU0, 1.0, None),), throttled_s=None, pressure=None)
    after = replace(AFTER, threads=(ThreadSample(VCPU0, 2.0, None),), throttled_s=None, pressure=None)
    found = rates.process_rates(before, after)
    assert found is not None
    assert (found.waited, found.throttled, found.pressure) == (None, None, None)


@pytest.mark.parametrize(
    ("before", "after", "bits", "went"),
    [
        (5, 9, 64, 4),
        (2**32 - 10, 20, 32, 30),  # around the end
        (2**64 - 10, 20, 64, 30),
        (1_000_000, 3, 64, 3),  # begun anew
        (3_000_000_000, 100, 64, 100),  # begun anew: not around the end of 32 bits
        (100.0, 99.99, 64, 0.0),  # iowait falls a little now and then
    ],
)
def test_how_far_a_counter_went(before: float, after: float, bits: int, went: float) -> None:
    assert advance(before, after, bits) == went


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_no_counter_ever_goes_back(before: int, after: int) -> None:
    assert advance(before, after) >= 0
    assert after < before or advance(before, after) == after - before


def test_disks_of_the_same_name_are_compared() -> None:
    def disk(name: str, many: int) -> DiskCounters:
        # A read takes 5 ms, a write 10 ms; nobody flushed so that it took time.
        times = (many * 5_000_000, many * 20_000_000, 0)
        return DiskCounters(name, many * 512, many * 1024, many, 2 * many, many // 10, *times)

    before = Counters((disk("root", 100), disk("gone", 7)), kvm={"exits": 10, "halt_exits": 1})
    after = Counters((disk("root", 200), disk("new", 1_000_000)), kvm={"exits": 60, "io_exits": 5})
    found = rates.disk_rates(before, after, 10.0)
    root = rates.OneDiskRate("root", 5120.0, 10240.0, 10.0, 20.0, 1.0, pytest.approx(0.25))
    assert (root.bytes, root.ops) == (15360.0, 31.0)
    assert found == rates.DiskRates(5120.0, 10240.0, 10.0, 20.0, 1.0, (root,), 0.005, 0.01, 0.0)
    idle = rates.disk_rates(before, before, 10.0)
    assert idle is not None and (idle.read_s, idle.write_s, idle.flush_s) == (None, None, None)
    assert rates.kvm_rates(before, after, 10.0) == {"exits": 5.0}
    assert rates.kvm_rates(Counters(()), after, 10.0) is None
    assert rates.disk_rates(before, after, 0.0) is None


def test_a_guest_that_rebooted_counts_its_traffic_anew() -> None:
    found = rates.network_rates(NetworkCounters(3_000_000_000, 9, 9, 9), NetworkCounters(500, 10, 1, 10), 5.0)
    assert found == rates.NetworkRates(100.0, pytest.approx(0.2), pytest.approx(0.2), pytest.approx(0.2))


def test_the_hosts_rates() -> None:
    before = hostrates.HostSample(10.0, {0: (100.0, 5.0, 0.0), 1: (50.0, 5.0, 1.0)}, None)
    after = hostrates.HostSample(20.0, {0: (110.0, 4.9, 0.0), 1: (52.0, 6.0, 2.0), 2: (9.0, 0.0, 0.0)}, None)
    found = hostrates.host_rates(before, after)
    assert found is not None
    assert (found.used, found.iowait, found.stolen) == pytest.approx((1.2, 0.1, 0.1))
    assert found.cpus == pytest.approx((1.0, 0.2))


# -- who is who ------------------------------------------------------------------------------------

NAMES = {
    10: "qemu-system-x86",
    11: "CPU 0/TCG",
    12: "CPU 1/TCG",
    13: "IO disks",
    14: "IO mon_iothread",
    15: "worker",
}


def _roles(*told: object) -> list[tuple[str, int]]:
    return [(one.name, one.tid) for one in proc.roles(NAMES, 10, *told)]  # type: ignore[arg-type]


def test_qemu_says_which_thread_is_which() -> None:
    told = _roles((12, 11), {"disks": 13})
    assert told == [("vcpu0", 12), ("vcpu1", 11), ("emulator", 10), ("disks", 13)]


def test_names_say_it_while_qemu_does_not_answer() -> None:
    assert _roles() == [("vcpu0", 11), ("vcpu1", 12), ("emulator", 10), ("disks", 13)]


def test_a_vcpu_plugged_in_since_is_known_by_its_name() -> None:
    assert ("vcpu1", 12) in _roles((11,), {"disks": 13})


def test_one_thread_for_all_vcpus_is_counted_once() -> None:
    found = proc.roles({10: "qemu", 11: "ALL CPUs/TCG"}, 10, (11, 11, 11), {})
    assert [(one.kind, one.tid) for one in found] == [("vcpu", 11), ("emulator", 10)]


# -- whose traffic, whose memory ---------------------------------------------------------------------


def test_what_a_guest_carries_twice_is_counted_once() -> None:
    def interface(name: str, mac: str, many: int) -> InterfaceCounters:
        return InterfaceCounters(name, mac, many, many * 2, many, many)

    guest = [
        interface("lo", "00:00:00:00:00:00", 999),
        interface("eth0", "52:54:00:AA:00:01", 100),
        interface("br0", "52:54:00:aa:00:01", 90),
        interface("eth1", "52:54:00:aa:00:02", 5),
        interface("docker0", "02:42:00:00:00:01", 500),
    ]
    found = guest_traffic(guest, ["52:54:00:aa:00:01", "52:54:00:aa:00:02"])
    assert found == NetworkCounters(105, 210, 105, 105)
    assert guest_traffic(guest, ["52:54:00:aa:00:03"]) is None


def test_what_a_tap_sends_the_guest_receives() -> None:
    data = (
        b"Inter-|   Receive                |  Transmit\n face |bytes ...\n"
        b"  tap0: 1000 10 0 0 0 0 0 0 5000 50 0 0 0 0 0 0\n    lo: 7 7 0 0 0 0 0 0 7 7 0 0 0 0 0 0\n"
    )
    interfaces = proc.parse_net_dev(data)
    assert tap_traffic(["tap0"], interfaces) == NetworkCounters(5000, 1000, 50, 10)
    assert tap_traffic(["tap9"], interfaces) is None


def test_memory_is_local_where_the_vcpus_ran() -> None:
    nodes = {0: 0, 1: 0, 2: 1, 3: 1}
    assert local_share(Placement({0: 300, 1: 100}, (0, 1)), nodes) == 0.75
    assert local_share(Placement({0: 300, 1: 100}, (0, 2)), nodes) == 1.0
    assert local_share(Placement({}, (0,)), nodes) is None
    assert local_share(Placement({0: 1}, ()), nodes) is None


# -- texts of the kernel -----------------------------------------------------------------------------


def test_a_name_may_contain_anything() -> None:
    line = b"42 (a) b (c) R 1 1 1 0 -1 0 7 0 9 0 150 50 0 0 20 0 8 0 777 0 0" + b" 0" * 12 + b" 0 0 3 0 0 0 0"
    stat = proc.parse_stat(line)
    assert stat.cpu_s == 200 / proc.TICKS_PER_S
    assert (stat.minor_faults, stat.major_faults, stat.threads, stat.started_ticks) == (7, 9, 8, 777)


def test_schedstat_of_a_kernel_without_it() -> None:
    assert proc.parse_schedstat(b"0 0 0\n") is None
    assert proc.parse_schedstat(b"5000000000 20 3\n") == proc.Schedule(5_000_000_000, 20)


def test_footprint_with_huge_pages_from_a_pool() -> None:
    """smaps counts those of hugetlbfs nowhere else, not even in Rss (proc_pid_smaps(5))."""
    text = b"""00400000-7fff00000000 ---p 00000000 00:00 0 [rollup]
Rss: 100 kB
Pss: 60 kB
Shared_Clean: 20 kB
Shared_Dirty: 10 kB
Private_Clean: 30 kB
Private_Dirty: 40 kB
AnonHugePages: 8 kB
KSM: 4 kB
Shared_Hugetlb: 0 kB
Private_Hugetlb: 2048 kB
Swap: 16 kB
"""
    found = proc.parse_footprint(text)
    assert found.rss_bytes == 2148 << 10
    assert (found.private_bytes, found.shared_bytes) == (2118 << 10, 30 << 10)
    assert (found.swapped_bytes, found.huge_bytes, found.merged_bytes) == (16 << 10, 2056 << 10, 4 << 10)


def test_numa_maps_with_pages_of_two_sizes() -> None:
    text = (
        b"7f00 default file=/memfd:ram huge dirty=2 N0=1 N1=1 kernelpagesize_kB=2048\n"
        b"55e8 default anon=3 dirty=3 N0=3 kernelpagesize_kB=4\n7fff default\n"
    )
    assert proc.parse_numa_maps(text) == {0: (2 << 20) + (12 << 10), 1: 2 << 20}


def test_files_that_everybody_reads_are_on_no_node_of_a_vms_own() -> None:
    """As of a QEMU with 192 MiB: kernel and program had made a third of its memory lie on another node."""
    text = (
        b"7f0e default file=/var/images/6/vmlinux mapped=11344 N1=11344 kernelpagesize_kB=4\n"
        b"5631 default file=/usr/bin/qemu mapped=1221 active=1212 N0=399 N1=822 kernelpagesize_kB=4\n"
        b"563f default file=/usr/bin/qemu anon=251 dirty=251 active=0 N0=251 kernelpagesize_kB=4\n"
        b"7f0f bind:0 file=/memfd:innkeeper-ram\\040(deleted) dirty=49152 N0=49152 kernelpagesize_kB=4\n"
    )
    assert proc.parse_numa_maps(text) == {0: (49152 + 251) << 12}


def test_throttled_time_of_both_versions() -> None:
    assert proc.parse_cpu_stat(b"usage_usec 9\nnr_throttled 1\nthrottled_usec 1500000\n") == 1.5
    assert proc.parse_cpu_stat(b"nr_periods 0\nnr_throttled 0\nthrottled_time 0\n") is None  # no limit
    assert proc.parse_cpu_stat(b"nr_periods 1\nnr_throttled 1\nthrottled_time 2500000000\n") == 2.5
    assert proc.parse_cpu_stat(b"usage_usec 9\n") is None


def test_pressure_and_cpus_of_the_host() -> None:
    assert proc.parse_pressure(b"some avg10=1.00 total=2500000\nfull avg10=0.00 total=7\n") == 2.5
    cpus = proc.parse_host_cpus(b"cpu  1 1 1 1 1 1 1 1 0 0\ncpu3 100 100 100 999 50 50 50 25 40 0\nintr 5\n")
    ticks = proc.TICKS_PER_S
    assert cpus == {3: (400 / ticks, 50 / ticks, 25 / ticks)}


@pytest.mark.parametrize(
    ("used", "waited", "expected"),
    [
        (0.5, 0.0, 0.5),
        (0.4, 0.6, 1.0),  # it never slept
        (0.01, 0.1, 0.0111),  # it slept nearly always: its short waits are no work
        (0.25, 0.5, 0.5),
        (0.6, 0.6, 1.0),  # two readings at slightly different moments
        (0.0, 1.0, 0.0),
        (0.0, 0.0, 0.0),
    ],
)
def test_demand_is_what_an_empty_host_would_see(used: float, waited: float, expected: float) -> None:
    assert demand(used, waited) == pytest.approx(expected, rel=0.01)
