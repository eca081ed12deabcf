"""Whose memory goes to whom when the host has too little: the targets of all balloons. Pure.

One step at a time: what VMs, their guests and the host are like goes in, what to ask of which balloon comes
out. What has to be remembered between two steps is in `Memory` (tune/memo.py), which the step changes.

While the host is short of memory it is taken from those who leave it idle, by min-funding revocation with an
idle memory tax: whoever pays the fewest shares for a page gives first, and an idle page is charged
k = 1 / (1 - tax) times that of one in use (C. Waldspurger, Memory Resource Management in VMware ESX Server,
OSDI 2002, section 5.3). In equilibrium all pay the same, shares / (active + k * idle), which is solved for
directly. What is active comes from the guest itself (its balloon's statistics) and not from sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from innkeeper.agent.tune.memo import RULES, Memo, Memory, Rules, Vm, patience_s, remembered
from innkeeper.spec.waterfill import Claim, fill
from innkeeper.units import MiB

Standing = Literal["follows", "never", "barred", "silent", "ignores"]


@dataclass(frozen=True, slots=True)
class Account:
    """Memory there is for VMs, and what is left of it: of the host as a whole, or of what VMs may have."""

    capacity: int
    left: int


@dataclass(frozen=True, slots=True)
class Host:
    accounts: tuple[Account, ...]
    pressure: float | None = None


@dataclass(frozen=True, slots=True)
class View:
    """What is known of one VM after a step. `why`: what keeps its balloon from where it should be, or empty.
    `working_set`: what it cannot do without, in bytes; None: nobody told."""

    standing: Standing
    why: str
    given: int
    left: int
    target: int
    floor: int | None = None
    working_set: int | None = None
    available: int | None = None
    swap_in: float | None = None  # bytes a second
    major_faults: float | None = None  # a second
    needs: bool = False
    overdue: bool = False  # its guest should have told something long ago
    hollow: bool = False  # what its balloon took is the VM's all the same


@dataclass(frozen=True, slots=True)
class Decision:
    """`targets`: of whom something else is to be asked now than before."""

    targets: Mapping[str, int]
    views: Mapping[str, View]
    pressed: bool


@dataclass(slots=True)
class _Case:
    """One VM in one step. `held`: what it has, or has been promised."""

    vm: Vm
    memo: Memo
    standing: Standing
    why: str = ""
    active: int = 0
    floor: int = 0
    most: int = 0
    held: int = 0
    needs: bool = False
    overdue: bool = False
    target: int = 0


def step(memory: Memory, host: Host, vms: Sequence[Vm], now: float, rules: Rules = RULES) -> Decision:
    """`now`: seconds of a clock that never goes back. VMs that are not among `vms` are forgotten."""
    memory.vms = {vm.uid: remembered(memory.vms.get(vm.uid), vm, now, rules) for vm in vms}
    cases = [_case(vm, memory.vms[vm.uid], now, rules) for vm in vms]
    followers = [case for case in cases if case.standing == "follows"]
    memory.pressed = _pressed(host, rules, memory.pressed)
    _divide(followers, host, memory.pressed, rules)
    targets: dict[str, int] = {}
    for case in cases:
        wanted = _limited(case, now, rules)
        if wanted != case.memo.target or case.memo.unsaid:
            case.memo.ask(wanted, case.vm.left, now)
            targets[case.vm.uid] = wanted
        if case.standing == "follows":
            case.why = _hindrance(case, now, rules)
    return Decision(targets, {case.vm.uid: _view(case) for case in cases}, memory.pressed)


def _case(vm: Vm, memo: Memo, now: float, rules: Rules) -> _Case:
    standing, why = _standing(vm, memo, now, rules)
    case = _Case(vm, memo, standing, why, held=max(vm.left, memo.target))
    available = vm.guest.available if vm.guest is not None and memo.talks else None
    if available is not None:
        margin = max(rules.margin_bytes, vm.given // rules.margin_part)
        case.active = max(0, vm.left - available)
        case.needs = _needs(vm, memo, available, margin, now, rules)
        limit = vm.given if vm.limit is None else vm.limit
        # A limit below what it cannot do without would only make it kill its programs.
        case.most = min(vm.given, max(limit, case.active + margin // 2))
        case.floor = min(case.most, max(case.active + margin, vm.reservation))
    case.target = case.held
    case.overdue = now - memo.heard_at > patience_s(vm, rules)
    if standing in ("never", "ignores") or (standing != "follows" and (case.overdue or case.needs)):
        case.target = vm.given
    return case


def _standing(vm: Vm, memo: Memo, now: float, rules: Rules) -> tuple[Standing, str]:
    if not vm.wanted:
        return "never", "its balloon is not to be used (qos.memory.balloon=never)"
    if vm.barred:
        return "barred", vm.barred
    if now - memo.heard_at > patience_s(vm, rules):
        why = f"no balloon driver in its guest has told of its memory for {patience_s(vm, rules):g} s"
        return "silent", why
    if not memo.talks or vm.guest is None or vm.guest.available is None:
        return "silent", "its guest has not told of its memory yet"
    if _refuses(vm, memo, now, rules):
        return "ignores", (
            f"its guest gave nothing of what it was asked for: given up after {rules.ignores_after_s:g} s, to"
            f" be asked again after {rules.asks_again_after_s / 60:g} minutes"
        )
    return "follows", ""


def _refuses(vm: Vm, memo: Memo, now: float, rules: Rules) -> bool:
    if memo.refused_at is not None:
        if now - memo.refused_at < rules.asks_again_after_s:
            return True
        memo.refused_at = None
    # Only what it has had the time for since: one that tells nothing any more is silent, and ignores nothing.
    heard_for_s = memo.heard_at - memo.asked_at
    waits = memo.target < vm.left - rules.granule_bytes and heard_for_s >= rules.ignores_after_s
    if waits and not memo.moved:
        memo.refused_at = now
        return True
    if waits:  # it gave some of it: that is all it can
        memo.accept(vm.left, now, fell_short=True)
    return False


def _needs(vm: Vm, memo: Memo, available: int, margin: int, now: float, rules: Rules) -> bool:
    """Whether it has too little to work with. Each report of its guest counts once."""
    if memo.heard_at == now:
        swaps = (memo.swap_in or 0.0) > rules.swap_bytes_per_s
        reads_again = (memo.faults or 0.0) > rules.faults_per_s and available < 2 * margin
        short = vm.left < vm.given and (available < margin // 2 or swaps or reads_again)
        memo.needs = memo.needs + 1 if short else 0
    if memo.needs:
        memo.needed_at = now
    return memo.needs > 0


def _pressed(host: Host, rules: Rules, before: bool) -> bool:
    mark = rules.goal if before else rules.low
    short = any(one.left < mark * one.capacity for one in host.accounts)
    return short or _stalls(host, rules)


def _stalls(host: Host, rules: Rules) -> bool:
    if host.pressure is None or host.pressure <= rules.pressure:
        return False
    return any(one.left < rules.watch * one.capacity for one in host.accounts)


def _relaxed(host: Host, rules: Rules) -> bool:
    """Clearly, so that what is given back is not taken again at once."""
    eased = host.pressure is None or host.pressure < rules.pressure / 2
    return eased and all(one.left > rules.release * one.capacity for one in host.accounts)


def _divide(cases: list[_Case], host: Host, pressed: bool, rules: Rules) -> None:
    """Sets each one's target: more for those in need, from what there is; and then something from the idle,
    or something for everybody."""
    granted = _grant([case for case in cases if case.needs], host, rules)
    others = [case for case in cases if not case.needs]
    for case in others:
        case.target = min(case.held, case.most)
    if pressed:
        missing = max(rules.goal * one.capacity - one.left for one in host.accounts)
        if _stalls(host, rules):
            missing = max(missing, rules.pressure_step * max(one.capacity for one in host.accounts))
        _set(others, sum(case.target for case in others) - missing - granted, rules, shrink=True)
    elif _relaxed(host, rules):
        spare = min(one.left - rules.goal * one.capacity for one in host.accounts) - granted
        _set(others, sum(case.target for case in others) + max(0.0, spare), rules, shrink=False)


def _grant(cases: list[_Case], host: Host, rules: Rules) -> float:
    """Those in need get more at once; what they got altogether."""
    funds = min((one.left - rules.last * one.capacity for one in host.accounts), default=0.0)
    claims = []
    for case in cases:
        more = max(rules.grow_bytes, case.vm.given // rules.grow_part) << min(case.memo.needs - 1, 4)
        most = max(case.held, min(case.most, case.vm.left + more))
        claims.append(Claim(case.held, most, case.held, case.vm.shares))
    held = sum(case.held for case in cases)
    for case, got in zip(cases, fill(held + max(0.0, funds), claims), strict=True):
        case.target = int(got)
    return float(sum(case.target for case in cases) - held)


def _set(cases: list[_Case], supply: float, rules: Rules, *, shrink: bool) -> None:
    """By shares, an idle page charged k times: of P pages, shares / (active + k (P - active)) is the same for
    all, so P = active (1 - 1/k) + shares x / k."""
    k = 1 / (1 - rules.idle_tax)
    claims = []
    for case in cases:
        least = min(case.floor, case.target) if shrink else case.target
        most = case.target if shrink else max(case.target, case.most)
        claims.append(Claim(least, most, case.active * (1 - 1 / k), case.vm.shares * case.vm.given / k))
    for case, got in zip(cases, fill(supply, claims), strict=True):
        case.target = int(got)


def _limited(case: _Case, now: float, rules: Rules) -> int:
    """What is really asked for now: growth at once, the rest in steps, each after the guest told what the one
    before made of it."""
    vm, memo = case.vm, case.memo
    if _renews(case):
        return vm.given
    wanted = case.target if case.target >= vm.given else case.target // MiB * MiB
    if memo.needed_at is not None and now - memo.needed_at < rules.needs_for_s:
        wanted = max(wanted, min(case.most, memo.target))
    if wanted >= memo.target:
        worth = wanted - memo.target >= rules.granule_bytes or wanted >= vm.given
        return wanted if worth else memo.target
    fresh = memo.heard_at > memo.asked_at and now - memo.heard_at <= rules.fresh_s
    if not memo.reached or not fresh:
        return memo.target
    step_bytes = max(rules.shrink_bytes, vm.given // rules.shrink_part)
    wanted = max(wanted, (vm.left - step_bytes) // MiB * MiB)
    return wanted if memo.target - wanted >= rules.granule_bytes else memo.target


def _hindrance(case: _Case, now: float, rules: Rules) -> str:
    """Why one that follows has more than it should, and gets no nearer to that; without numbers that change
    all the time."""
    vm, memo = case.vm, case.memo
    goal = case.target if vm.limit is None else min(case.target, vm.limit)
    if memo.renewing or vm.left - goal < rules.granule_bytes:
        memo.behind_since, memo.fell_short = None, False
        return ""
    if memo.behind_since is None:
        memo.behind_since = now
    elif vm.left < memo.left:
        memo.behind_since, memo.fell_short = now, False
    memo.left = vm.left
    if now - memo.behind_since < rules.says_after_s:
        return ""
    if memo.fell_short:
        return "its guest gave some of what it was asked for, and no more"
    if vm.limit is not None and goal == vm.limit < case.most:
        return f"its guest needs more than its limit leaves it ({vm.limit // MiB} MiB)"
    if memo.needed_at is not None and now - memo.needed_at < rules.needs_for_s:
        return f"its guest was short of memory: nothing is taken from it for {rules.needs_for_s:g} s"
    if now - memo.heard_at > rules.fresh_s:
        return "its guest has told nothing of its memory of late"
    return "its guest has not given yet what it was asked for"


def _renews(case: _Case) -> bool:
    """A balloon whose pages lie in the host's memory all the same - its RAM was copied as a whole when it was
    moved - is emptied once, so that it can be filled anew."""
    vm, memo = case.vm, case.memo
    if memo.renewing:
        memo.renewing = vm.left < vm.given
    elif case.standing == "follows" and not memo.renewed and vm.left < vm.given and memo.target == vm.left:
        memo.renewing = memo.renewed = _hollow(vm)
    return memo.renewing


def _hollow(vm: Vm) -> bool:
    return vm.backed > vm.left + max(16 * MiB, vm.given // 50)


def _view(case: _Case) -> View:
    vm, memo = case.vm, case.memo
    guest = vm.guest if memo.talks else None
    known = guest is not None and guest.available is not None
    return View(
        standing=case.standing,
        why=case.why,
        given=vm.given,
        left=vm.left,
        target=memo.target,
        floor=case.floor if case.standing == "follows" else None,
        working_set=case.active if known else None,
        available=guest.available if guest is not None else None,
        swap_in=memo.swap_in if known else None,
        major_faults=memo.faults if known else None,
        needs=case.needs,
        overdue=case.overdue,
        hollow=_hollow(vm),
    )
