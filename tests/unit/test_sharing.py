"""Water-filling: what must hold of it for any claims, and some that can be reckoned by hand."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from innkeeper.spec.sharing import Claim, entitlements, kept_millicores


@st.composite
def claim(draw: st.DrawFn) -> Claim:
    reservation, more = draw(st.floats(0, 8)), draw(st.floats(0, 8))
    return Claim(draw(st.floats(1, 100_000)), reservation, reservation + more)


CLAIMS = st.lists(claim(), min_size=1, max_size=12)
CAPACITY = st.floats(0.01, 64)


@given(CLAIMS, CAPACITY)
def test_everything_is_given_away_within_the_bounds(claims: list[Claim], capacity: float) -> None:
    got = entitlements(claims, capacity)
    assert sum(got) == pytest.approx(min(capacity, sum(one.limit for one in claims)), rel=1e-6, abs=1e-9)
    if sum(one.reservation for one in claims) <= capacity:
        for one, amount in zip(claims, got, strict=True):
            assert one.reservation - 1e-9 <= amount <= one.limit + 1e-9


@given(CLAIMS, CAPACITY)
def test_between_the_bounds_it_goes_by_shares(claims: list[Claim], capacity: float) -> None:
    if sum(one.reservation for one in claims) >= capacity:
        return
    got = entitlements(claims, capacity)
    levels = [
        amount / one.shares
        for one, amount in zip(claims, got, strict=True)
        if one.reservation + 1e-6 < amount < one.limit - 1e-6
    ]
    assert not levels or max(levels) == pytest.approx(min(levels), rel=1e-6)


@given(CLAIMS, CAPACITY, st.floats(1, 10))
def test_more_shares_never_give_less(claims: list[Claim], capacity: float, factor: float) -> None:
    first, *others = claims
    more = Claim(first.shares * factor, first.reservation, first.limit)
    assert entitlements([more, *others], capacity)[0] >= entitlements(claims, capacity)[0] - 1e-6


@given(CLAIMS, CAPACITY, st.floats(1, 3))
def test_more_capacity_takes_nothing_from_anybody(
    claims: list[Claim], capacity: float, factor: float
) -> None:
    before, after = entitlements(claims, capacity), entitlements(claims, capacity * factor)
    assert all(late >= early - 1e-6 for early, late in zip(before, after, strict=True))


@given(CLAIMS, CAPACITY, st.floats(0.01, 100))
def test_only_ratios_of_shares_count(claims: list[Claim], capacity: float, factor: float) -> None:
    scaled = [Claim(one.shares * factor, one.reservation, one.limit) for one in claims]
    assert entitlements(scaled, capacity) == pytest.approx(entitlements(claims, capacity), rel=1e-6, abs=1e-6)


def test_by_hand() -> None:
    # Two cores: 1.5 reserved by one with few shares, the rest by shares 2:1.
    claims = [Claim(500, 1.5, 4), Claim(2000, 0, 4), Claim(1000, 0, 4)]
    assert entitlements(claims, 2.0) == pytest.approx([1.5, 1 / 3, 1 / 6])
    # What a limited one may not take goes to the others.
    assert entitlements([Claim(1000, 0, 0.2), Claim(1000, 0, 2)], 2.0) == pytest.approx([0.2, 1.8])
    # Enough for all.
    assert entitlements([Claim(1, 0, 1), Claim(100, 0, 1)], 4.0) == [1, 1]
    # The host lost CPUs.
    assert entitlements([Claim(1, 3, 4), Claim(100, 1, 4)], 2.0) == [1.5, 0.5]
    assert entitlements([], 2.0) == []


def test_a_thousand_take_milliseconds() -> None:
    claims = [Claim(500 + index % 7 * 300, index % 5 / 100, 1 + index % 3) for index in range(1000)]
    begun = time.process_time()
    got = entitlements(claims, 64.0)
    assert time.process_time() - begun < 0.1
    assert sum(got) == pytest.approx(64.0)


def test_what_the_host_keeps() -> None:
    assert [kept_millicores(cpus) for cpus in (1, 2, 16, 64)] == [250, 250, 800, 3200]
