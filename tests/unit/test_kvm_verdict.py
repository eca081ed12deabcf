"""The verdict on /dev/kvm: what follows from a measurement, and that no device makes the probe hang."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import sys
import time
from asyncio import run
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from innkeeper.drivers.run import FaultyRunner, SystemRunner
from innkeeper.engine import kvm, kvm_child
from innkeeper.engine.kvm import KvmVerdict, Measurement, judge
from innkeeper.errors import CommandFailed, Unsupported

GOOD = Measurement(
    step="done", api_version=12, exit_reason=5, sum_correct=True, instructions=20_000_000, seconds=0.01
)


def seen(**changes: Any) -> Measurement:
    return dataclasses.replace(GOOD, **changes)


@pytest.mark.parametrize(
    ("measurement", "kind", "words"),
    [
        (GOOD, "hardware", "2000 M instructions/s"),
        (seen(instructions=20_000, seconds=0.01), "emulated", "2.0 M/s"),
        # Nested KVM in a TCG guest: slow for hardware, yet it is what a kernel boots on.
        (seen(instructions=20_000_000, seconds=0.1), "hardware", "200 M"),
        (seen(sum_correct=False), "broken", "wrong sum"),
        (seen(exit_reason=17), "broken", "exit reason 17"),
        (seen(api_version=11), "broken", "API version 11"),
        (Measurement(step="KVM_RUN", timed_out=True), "broken", "KVM_RUN did not come back"),
        (Measurement(step="open", timed_out=True), "broken", "open did not come back"),
        (Measurement(step="open", errno=errno.ENOENT), "missing", "there is no /dev/kvm"),
        (Measurement(step="open", errno=errno.ENODEV), "missing", "no driver"),
        (Measurement(step="open", errno=errno.EACCES), "missing", "no permission"),
        (Measurement(step="open", errno=errno.EPERM), "missing", "add yourself to group kvm"),
        (Measurement(step="open", errno=errno.EIO), "broken", "Input/output error"),
        (Measurement(step="KVM_GET_API_VERSION", errno=errno.ENOTTY), "broken", "not a KVM device"),
        (Measurement(step="KVM_CREATE_VM", errno=errno.EBUSY), "broken", "another hypervisor"),
        (Measurement(step="KVM_CREATE_VM", errno=errno.ENOMEM), "broken", "KVM_CREATE_VM: Cannot allocate"),
        (Measurement(step="architecture", complaint="riscv64"), "missing", "not riscv64"),
        (Measurement(step="KVM_RUN", complaint="Segmentation fault"), "broken", "Segmentation fault"),
        (Measurement(), "broken", "ended early"),
    ],
)
def test_the_verdict_follows_from_the_measurement(measurement: Measurement, kind: str, words: str) -> None:
    verdict = judge(measurement, boot_id="b")
    assert (verdict.kind, verdict.checked_boot_id) == (kind, "b")
    assert words in verdict.detail
    assert "\n" not in verdict.detail


def test_without_permission_the_repair_names_the_user() -> None:
    verdict = judge(Measurement(step="open", errno=errno.EACCES), user="ada")
    assert verdict.repair == "usermod -aG kvm ada"
    alone = judge(Measurement(step="open", errno=errno.EACCES), user="ada", group="")
    assert "root's alone" in alone.detail
    assert alone.repair == "chgrp kvm /dev/kvm && chmod 0660 /dev/kvm && usermod -aG kvm ada"


@given(
    st.builds(
        Measurement,
        step=st.sampled_from(["open", "KVM_RUN", "done", "x"]),
        errno=st.integers(0, 4000),
        instructions=st.integers(0, 10**12),
        seconds=st.floats(0, 1e6),
        exit_reason=st.integers(-1, 50),
        api_version=st.integers(-1, 20),
        sum_correct=st.booleans(),
        timed_out=st.booleans(),
        complaint=st.text(max_size=5),
    )
)
def test_only_a_right_and_fast_answer_is_hardware(measurement: Measurement) -> None:
    verdict = judge(measurement)
    fast = measurement.seconds > 0 and measurement.instructions / measurement.seconds >= 50e6
    right = (
        measurement.step == "done"
        and measurement.sum_correct
        and measurement.exit_reason == 5
        and measurement.api_version == 12
        and not (measurement.timed_out or measurement.errno or measurement.complaint)
    )
    assert (verdict.kind == "hardware") == (fast and right)


JSON_LINES = st.dictionaries(
    st.sampled_from(["step", "errno", "seconds", "instructions"]),
    st.one_of(st.none(), st.text(), st.integers(), st.floats(), st.lists(st.integers())),
).map(json.dumps)


@given(st.lists(st.one_of(st.text(), JSON_LINES)))
def test_whatever_the_child_prints_is_survived(lines: list[str]) -> None:
    judge(kvm.read_child(lines, complaint="x"))


def test_the_last_step_begun_is_the_one_blamed() -> None:
    measurement = kvm.read_child(['{"step": "open"}', "noise", '{"step": "KVM_RUN"}'], timed_out=True)
    assert judge(measurement).detail.startswith("KVM_RUN ")


# ---- devices that are not what they seem ----


def test_fake_devices_are_broken_at_once(tmp_path: Path) -> None:
    fifo, plain = tmp_path / "fifo", tmp_path / "plain"
    os.mkfifo(fifo)
    plain.write_bytes(b"\0" * 100)
    begun = time.monotonic()
    for device in (str(fifo), str(plain), "/dev/null"):
        verdict = run(kvm.probe(SystemRunner(), device=device, deadline_s=5))
        assert verdict.kind == "broken", (device, verdict)
        assert "not a KVM device" in verdict.detail
    assert time.monotonic() - begun < 5


def test_a_missing_device_starts_no_child(tmp_path: Path) -> None:
    runner = FaultyRunner(SystemRunner())
    verdict = run(kvm.probe(runner, device=str(tmp_path / "kvm")))
    assert (verdict.kind, runner.calls) == ("missing", [])
    assert verdict.repair.startswith("modprobe")


def test_a_directory_is_no_device(tmp_path: Path) -> None:
    assert run(kvm.probe(SystemRunner(), device=str(tmp_path))).kind == "broken"


def child(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def alive(word: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if word in text:
            found.append(text)
    return found


def test_a_child_that_never_ends_is_given_up() -> None:
    word = f"probe_child_{os.getpid()}"
    code = f'import time; {word} = print(\'{{"step": "KVM_RUN"}}\', flush=True); time.sleep(600)'
    begun = time.monotonic()
    verdict = run(kvm.probe(SystemRunner(), device="/dev/null", deadline_s=0.3, argv=child(code)))
    assert verdict.kind == "broken"
    assert verdict.detail == "KVM_RUN did not come back within the deadline"
    assert time.monotonic() - begun < 10
    assert alive(word) == []


def test_a_child_that_ignores_sigterm_is_killed() -> None:
    word = f"deaf_child_{os.getpid()}"
    code = f"import signal, time; {word} = signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    begun = time.monotonic()
    verdict = run(kvm.probe(SystemRunner(), device="/dev/null", deadline_s=0.3, argv=child(code)))
    assert verdict.kind == "broken"
    assert time.monotonic() - begun < 12
    assert alive(word) == []


def test_the_real_child_ends_itself_at_its_deadline() -> None:
    code = (
        "import time; from innkeeper.engine import kvm_child as k\n"
        "def hang(device): k._report(step='KVM_RUN'); time.sleep(600)\n"
        "k._measure = hang; k.main(['/dev/null', '0.2'])"
    )
    finished = run(SystemRunner().run(child(code), deadline_s=20, check=False))
    assert finished.status == -signal.SIGALRM
    verdict = run(kvm.probe(SystemRunner(), device="/dev/null", argv=child(code)))
    assert verdict.detail == "KVM_RUN did not come back within the deadline"


@pytest.mark.parametrize("code", ["", "print('hello')", "import os; os.abort()", "raise SystemExit(3)"])
def test_a_child_that_dies_is_broken(code: str) -> None:
    verdict = run(kvm.probe(SystemRunner(), device="/dev/null", argv=child(code)))
    assert verdict.kind == "broken"
    assert "ended early at start" in verdict.detail


@pytest.mark.parametrize(
    "error", [CommandFailed("stuck"), Unsupported("no python"), OSError(errno.EAGAIN, "no more processes")]
)
def test_a_runner_that_fails_is_no_exception(error: Exception) -> None:
    name = os.path.basename(sys.executable)
    runner = FaultyRunner(SystemRunner(), fail={name: error})
    assert run(kvm.probe(runner, device="/dev/null")).kind == "broken"


# ---- the cache ----

EMULATED = 'print(\'{"step": "done", "api_version": 12, "exit_reason": 5, "sum_correct": true,'
EMULATED += ' "instructions": 20000, "seconds": 0.01}\')'


def test_a_verdict_is_probed_once_per_boot(tmp_path: Path) -> None:
    cache, device = tmp_path / "deep" / "kvm.json", tmp_path / "dev"
    device.touch()
    runner = FaultyRunner(SystemRunner())

    def load() -> KvmVerdict:
        return run(kvm.load_or_probe(cache, runner, device=str(device), argv=child(EMULATED)))

    first = load()
    assert first.kind == "emulated"
    assert load() == first
    assert len(runner.calls) == 1
    os.chmod(device, 0o640)  # somebody repaired the node: look again
    assert load() == first
    assert len(runner.calls) == 2
    assert [path.name for path in cache.parent.iterdir()] == ["kvm.json"]


def test_another_boot_is_another_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "kvm.json"
    kvm.remember(cache, KvmVerdict("hardware", "fast", 3e9, 12, kvm.boot_id()), "/dev/null")
    found = kvm.cached(cache, "/dev/null")
    assert found is not None and found.kind == "hardware"
    monkeypatch.setattr(kvm, "boot_id", lambda: "another")
    assert kvm.cached(cache, "/dev/null") is None


def test_broken_is_tried_again_after_an_hour(tmp_path: Path) -> None:
    cache = tmp_path / "kvm.json"
    kvm.remember(cache, KvmVerdict("broken", "hung", 0, 12, kvm.boot_id()), "/dev/null")
    assert kvm.cached(cache, "/dev/null", now_s=time.time() + 60) is not None
    assert kvm.cached(cache, "/dev/null", now_s=time.time() + 3700) is None
    assert kvm.cached(cache, "/dev/null", now_s=time.time() - 3700) is None  # the clock was set back


def test_missing_is_never_remembered(tmp_path: Path) -> None:
    cache = tmp_path / "kvm.json"
    kvm.remember(cache, judge(Measurement(step="open", errno=errno.EACCES), boot_id=kvm.boot_id()))
    assert not cache.exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"verdict": 3}', '{"verdict": {"kind": "x"}}', "\0"]
)
def test_a_damaged_cache_is_no_cache(tmp_path: Path, content: str) -> None:
    cache = tmp_path / "kvm.json"
    cache.write_text(content)
    assert kvm.cached(cache, "/dev/null") is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert kvm.write_json(tmp_path / "file" / "kvm.json", {}) is False
    (tmp_path / "folder.json").mkdir()
    assert kvm.write_json(tmp_path / "folder.json", {}) is False
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.json"]


def loops_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *rates: float
) -> list[float]:
    """Let the child run loops of these speeds, the last one for ever; the speeds of those it ran and the one
    it reported last."""
    now, ran = [0.0], list[float]()

    def run_once(vcpu: int, shared: object, instructions: int) -> tuple[int, float, int, bool]:
        ran.append(rates[min(len(ran), len(rates) - 1)])
        now[0] += instructions / ran[-1]
        return instructions, instructions / ran[-1], kvm_child.KVM_EXIT_HLT, True

    monkeypatch.setattr(kvm_child, "_run_once", run_once)
    monkeypatch.setattr(kvm_child.time, "perf_counter", lambda: now[0])
    kvm_child._run_loops(0, None)  # type: ignore[arg-type]
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["step"] == "done"
    return [*ran, told["instructions"] / told["seconds"]]


def test_a_slow_first_loop_does_not_decide(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nested KVM in an emulated CPU: its first loops are as slow as a fast emulation's."""
    *ran, reported = loops_of(monkeypatch, capsys, 1e6, 20e6, 40e6, 30e6, 1000e6)
    assert reported == pytest.approx(1000e6)
    assert len(ran) == 5


def test_an_emulation_is_not_tried_for_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    *ran, reported = loops_of(monkeypatch, capsys, 2e6)
    assert reported == pytest.approx(2e6)
    assert sum(kvm_child.FIRST_INSTRUCTIONS / rate for rate in ran) < kvm_child.PATIENCE_S + 0.1


def test_hardware_is_sure_after_two_loops(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    *ran, _ = loops_of(monkeypatch, capsys, 3e9)
    assert len(ran) == 5  # 20,000, 200,000, 2 and 20 million instructions, and the last again
