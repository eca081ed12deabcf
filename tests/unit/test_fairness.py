"""What VMs are owed of CPU time, where the kernel's weights do not divide it as they should."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.cgroups import FakeHost
from fakes.world import World
from helpers import run
from innkeeper.agent.qos.cpu import weights_of
from innkeeper.agent.qos.fairness import Fairness
from innkeeper.agent.qos.keeper import QosKeeper
from innkeeper.spec.fairness import (
    FACTOR_LEAST,
    FACTOR_MOST,
    INTERVAL_S,
    OWED_MOST_S,
    Use,
    contended,
    factor,
    step,
)
from innkeeper.spec.sharing import Claim, entitlements


class Kernel:
    """Divides CPU time by weights times what it does not tell: its own error, one for each VM."""

    def __init__(self, claims: Mapping[str, Claim], cores: float, errors: Mapping[str, float]) -> None:
        self._claims, self._cores, self._errors = claims, cores, errors
        self.entitled = dict(zip(claims, entitlements(list(claims.values()), cores), strict=True))

    def divide(self, owed: Mapping[str, float], wishes: Mapping[str, float]) -> dict[str, Use]:
        weights = weights_of(
            self.entitled, {uid: factor(seconds, INTERVAL_S) for uid, seconds in owed.items()}
        )
        claims = [
            Claim(weights[uid] * self._errors[uid], 0.0, min(self._claims[uid].limit, wishes.get(uid, 64.0)))
            for uid in self._claims
        ]
        got = dict(zip(self._claims, entitlements(claims, self._cores), strict=True))
        return {
            uid: Use(cores, max(min(wishes.get(uid, 64.0), self._claims[uid].limit) - cores, 0.0))
            for uid, cores in got.items()
        }


def settle(kernel: Kernel, claims: Mapping[str, Claim], wishes: Mapping[str, float]) -> dict[str, float]:
    """What each gets in the end: the mean of the last steps, since weights are whole numbers."""
    owed: dict[str, float] = {}
    uses, last = kernel.divide(owed, wishes), []
    for number in range(40):
        owed = step(owed, uses, claims, INTERVAL_S)
        uses = kernel.divide(owed, wishes)
        if number >= 30:
            last.append(uses)
    return {uid: sum(one[uid].used for one in last) / len(last) for uid in claims}


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(500, 4000), st.floats(0.6, 1.6)), min_size=2, max_size=16),
    st.floats(0.5, 2.0),
)
def test_an_error_of_the_kernel_is_made_up_for(vms: list[tuple[int, float]], cores: float) -> None:
    claims = {str(number): Claim(shares, 0.0, 2.0) for number, (shares, _) in enumerate(vms)}
    kernel = Kernel(claims, cores, {str(number): error for number, (_, error) in enumerate(vms)})
    uses = settle(kernel, claims, {})
    for uid, entitled in kernel.entitled.items():
        assert uses[uid] == pytest.approx(entitled, rel=0.02)


def test_who_wants_less_gets_that_and_the_others_divide_the_rest() -> None:
    claims = {"a": Claim(2000, 0.0, 2.0), "b": Claim(1000, 0.0, 2.0), "idle": Claim(4000, 0.0, 2.0)}
    kernel = Kernel(claims, 1.75, {"a": 0.7, "b": 1.4, "idle": 1.0})
    uses = settle(kernel, claims, {"idle": 0.1})
    assert [round(uses[uid], 2) for uid in ("a", "b", "idle")] == [1.1, 0.55, 0.1]


def test_reservations_and_limits_bound_what_is_owed() -> None:
    claims = {"kept": Claim(500, 1.0, 2.0), "held": Claim(4000, 0.0, 0.3), "rest": Claim(4000, 0.0, 2.0)}
    kernel = Kernel(claims, 1.75, {"kept": 0.6, "held": 1.0, "rest": 1.5})
    uses = settle(kernel, claims, {})
    assert [round(uses[uid], 2) for uid in claims] == [1.0, 0.3, 0.45]


def test_who_had_all_it_wanted_is_owed_nothing_for_long() -> None:
    """It slept, or was held up: the time when it had less is not made up for later."""
    claims = {"a": Claim(1000, 0.0, 2.0), "b": Claim(1000, 0.0, 2.0)}
    uses = {"a": Use(0.2, 0.0), "b": Use(1.5, 0.5)}
    owed = {"a": OWED_MOST_S, "b": 0.0}
    for _ in range(8):
        owed = step(owed, uses, claims, INTERVAL_S)
    assert owed["a"] < 0.02


def test_owed_is_bounded_and_so_is_its_effect() -> None:
    claims = {"a": Claim(1000, 0.0, 2.0), "b": Claim(1000, 0.0, 2.0)}
    owed = step({}, {"a": Use(0.0, 2.0), "b": Use(1.75, 0.2)}, claims, took_s=3600.0)
    assert owed == {"a": OWED_MOST_S, "b": -OWED_MOST_S}
    assert [factor(owed["a"], 0.5), factor(owed["b"], 0.5), factor(0.0, 0.5)] == [
        FACTOR_MOST,
        FACTOR_LEAST,
        1.0,
    ]
    assert factor(0.5, 0.1) == 2.0 and factor(0.5, 2.0) == 1.25


def test_what_stands_still_is_owed_nothing() -> None:
    assert step({"a": 0.0}, {"a": Use(0.0, 0.0)}, {"a": Claim(1000, 0.0, 2.0)}, 0.5) == {"a": 0.0}
    assert step({}, {"gone": Use(1.0, 1.0)}, {}, 0.5) == {}


@pytest.mark.parametrize(
    ("uses", "expected"),
    [
        ([], False),
        ([Use(1.9, 2.0)], False),  # alone: what it waits for is not a VM
        ([Use(0.9, 0.01), Use(0.9, 0.02)], False),
        ([Use(0.9, 0.5), Use(0.9, 0.5)], True),
    ],
)
def test_only_those_who_wait_for_each_other_are_corrected(uses: list[Use], expected: bool) -> None:
    assert contended(uses) is expected


def test_a_thousand_busy_vms_are_corrected_in_no_time() -> None:
    chance = random.Random(7)
    claims = {str(number): Claim(chance.randint(500, 4000), 0.0, 2.0) for number in range(1000)}
    uses = {uid: Use(chance.random() / 10, 1.0) for uid in claims}
    begun = time.process_time()
    owed = step({}, uses, claims, INTERVAL_S)
    assert time.process_time() - begun < 0.2
    assert len(owed) == 1000


# ---- read from the host ----


def test_what_busy_vms_got_goes_into_their_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two alike one gets three times what the other gets, and waits less for it."""
    monkeypatch.setattr("innkeeper.agent.qos.cpu.os.sched_getaffinity", lambda pid: {0, 1})

    async def scenario() -> None:
        host, world = FakeHost(tmp_path / "host", v2=("cpu", "memory", "io")), World(tmp_path)
        world.cgroups = host.detect()
        async with world.daemon() as ctx:
            for name in ("rich", "poor"):
                await world.create(name, spec={"cpu": {"count": 2}})
            uids = {name: ctx.records[name].uid for name in ("rich", "poor")}

            def account(name: str, used: float, waited: float) -> None:
                group = world.cgroups.get(uids[name])
                assert group is not None
                (group.paths[0] / "cpu.stat").write_text(f"usage_usec {int(used * 1e6)}\n")
                task = tmp_path / f"proc/{world.machine(name).pid}/task/7"
                task.mkdir(parents=True, exist_ok=True)
                (task / "schedstat").write_text(f"{int(used * 1e9)} {int(waited * 1e9)} 9\n")

            keeper, fairness = QosKeeper(ctx), Fairness(tmp_path / "proc")
            account("rich", 1.0, 0.0)
            account("poor", 1.0, 0.0)
            assert not fairness.look(ctx, uids.values(), 100.0)
            account("rich", 1.75, 0.25)
            account("poor", 1.25, 0.75)
            assert not fairness.look(ctx, uids.values(), 100.1)  # too soon to tell
            assert fairness.look(ctx, uids.values(), 100.5)
            assert ctx.cpu_factors == pytest.approx({uids["rich"]: 0.5, uids["poor"]: 1.5})
            # Who is kept from running does not seem busy, and is watched all the same.
            account("rich", 2.75, 0.25)
            account("poor", 1.25, 1.75)
            assert fairness.look(ctx, [uids["rich"]], 101.5)
            assert ctx.cpu_factors[uids["poor"]] == pytest.approx(1 + 1.25)
            # What a thread waits is counted only when it runs again: until then its state tells.
            stat = tmp_path / "proc/7/stat"
            stat.parent.mkdir()
            for state, expected in (("R", 1 + (1.25 + 0.5) / 0.5), ("S", None)):
                stat.write_text(f"7 (CPU 0/TCG) {state} 1 1\n")
                account("rich", 3.25 if state == "R" else 3.75, 0.25)
                fairness.look(ctx, uids.values(), 102.0 if state == "R" else 102.5)
                if expected:
                    assert ctx.cpu_factors[uids["poor"]] == pytest.approx(min(expected, FACTOR_MOST))
                else:
                    assert ctx.cpu_factors == {}, "who sleeps wants nothing"
            monkeypatch.setattr(keeper, "_fairness", fairness)
            ctx.cpu_factors = {uids["rich"]: 0.5, uids["poor"]: 1.5}
            monkeypatch.setattr(fairness, "look", lambda *_: True)
            assert await keeper.look()
            weights = {name: world.cgroups.get(uid) for name, uid in uids.items()}
            told = {
                name: int((group.read("cpu", "cpu.weight") or "") if group else 0)
                for name, group in weights.items()
            }
            assert told["poor"] == pytest.approx(3 * told["rich"], rel=0.01)
            monkeypatch.undo()
            account("rich", 3.8, 0.25)
            account("poor", 1.3, 1.75)
            assert not fairness.look(ctx, uids.values(), 103.0)
            assert ctx.cpu_factors == {}

    run(scenario())
