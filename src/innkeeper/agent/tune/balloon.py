"""Whose memory goes to whom when the host has too little: the targets of all balloons. Pure.

One step at a time: what VMs, their guests and the host are like goes in, what to ask of which balloon comes
out. What has to be remembered between two steps is in `Memory`, which the step changes.

While the host is short of memory it is taken from those who leave it idle, by min-funding revocation with an
idle memory tax: whoever pays the fewest shares for a page gives first, and an idle page is charged
k = 1 / (1 - tax) times that of one in use (C. Waldspurger, Memory Resource Management in VMware ESX Server,
OSDI 2002, section 5.3). In equilibrium all pay the same, shares / (active + k * idle), which is solved for
directly. What is active comes from the guest itself (its balloon's statistics) and not from sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from innkeeper.engine.memory import GuestMemory
from innkeeper.spec.waterfill import Claim, fill
from innkeeper.units import MiB

Standing = Literal["follows", "never", "barred", "silent", "ignores"]


@dataclass(frozen=True, slots=True)
class Rules:
    """Thresholds, all in one place. Parts are of what there is for VMs: the host's memory, or what they may
    have of it."""

    # Memory is taken when less than `low` is left, until `goal` is; given back without need above `release`.
    low: float = 0.08
    goal: float = 0.12
    release: float = 0.16
    last: float = 0.02  # not given even to a VM in need
    # "Some" of the kernel's memory pressure, averaged over 10 s; counts where less than `watch` is left:
    # otherwise it is that of a cgroup at its limit.
    pressure: float = 0.10
    watch: float = 0.25
    pressure_step: float = 1 / 32  # what is taken at least when pressure is the reason
    idle_tax: float = 0.75  # the paper's; k = 4
    # What the guest keeps beside what it uses.
    margin_bytes: int = 32 * MiB
    margin_part: int = 16
    # In one step at most; the next one waits for the guest to have told what that made of it.
    shrink_bytes: int = 64 * MiB
    shrink_part: int = 8
    grow_bytes: int = 64 * MiB
    grow_part: int = 4  # doubled with each step in which it is still in need
    granule_bytes: int = 4 * MiB
    faults_per_s: float = 50.0  # major ones, of a guest that has little available
    swap_bytes_per_s: float = 1.0 * MiB
    needs_for_s: float = 30.0  # nothing is taken from it so long after it was in need
    ignores_after_s: float = 20.0
    asks_again_after_s: float = 600.0
    fresh_s: float = 10.0  # nothing is taken by what a guest told longer ago
    silent_after_s: float = 15.0  # beside the time in which it should have told something three times
    says_after_s: float = 10.0  # without getting nearer to where it should be: then it is said why


RULES: Final = Rules()


@dataclass(frozen=True, slots=True)
class Vm:
    """`limit` bounds its RAM alone. `barred`: why nothing can be taken from it, or empty. `backed` is what
    its RAM has taken of the host. `run` differs when another guest kernel or process is behind it."""

    uid: str
    given: int
    left: int  # by its balloon
    guest: GuestMemory | None = None
    shares: float = 1000.0
    reservation: int = 0
    limit: int | None = None
    wanted: bool = True
    barred: str = ""
    backed: int = 0
    run: object = None
    tells_every_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Account:
    """Memory there is for VMs, and what is left of it: of the host as a whole, or of what VMs may have."""

    capacity: int
    left: int


@dataclass(frozen=True, slots=True)
class Host:
    accounts: tuple[Account, ...]
    pressure: float | None = None


@dataclass(slots=True)
class _Memo:
    """`heard_at`: when its guest last told something new, by our clock (`told_at`: by its own account)."""

    run: object
    target: int
    asked_at: float
    asked_from: int
    heard_at: float
    told_at: float
    moved: bool = True  # since it was asked
    reached: bool = False  # what was asked for
    talks: bool = False  # it has told something since we listen
    before: GuestMemory | None = None
    swap_in: float | None = None  # bytes a second
    faults: float | None = None  # major ones a second
    needs: int = 0  # in so many reports in a row
    needed_at: float | None = None
    refused_at: float | None = None
    renewing: bool = False
    renewed: bool = False
    unsaid: bool = False  # the target was changed, and nobody told the VM
    fell_short: bool = False  # it gave some of what it was asked for, and no more
    left: int = 0  # in the step before
    behind_since: float | None = None  # it has more than it should, and gets no nearer

    def accept(self, left: int, now: float, *, fell_short: bool) -> None:
        """What it has is what it is to have; it was in need of it."""
        self.target, self.needed_at, self.unsaid, self.fell_short = left, now, True, fell_short

    def ask(self, target: int, left: int, now: float) -> None:
        self.target, self.asked_at, self.asked_from = target, now, left
        self.moved = self.reached = self.unsaid = False


@dataclass
class Memory:
    pressed: bool = False
    vms: dict[str, _Memo] = field(default_factory=dict)

    def untold(self, uid: str) -> None:
        """The VM did not get to know its last target; the next step has it told again."""
        if (memo := self.vms.get(uid)) is not None:
            memo.unsaid = True


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
    memo: _Memo
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
    memory.vms = {vm.uid: _remembered(memory.vms.get(vm.uid), vm, now, rules) for vm in vms}
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


def _remembered(memo: _Memo | None, vm: Vm, now: float, rules: Rules) -> _Memo:
    """Of one that is new here, what its balloon leaves it is what somebody asked for. So is one that tells
    something again after a long silence: that is another driver, and the old one's doings are not its."""
    told_at = vm.guest.told_at if vm.guest else 0.0
    back = memo is not None and told_at != memo.told_at and now - memo.heard_at > _patience_s(vm, rules)
    if memo is None or memo.run != (vm.run, vm.given) or back:
        memo = _Memo((vm.run, vm.given), vm.left, now, vm.left, now, told_at, unsaid=back)
    if vm.left != memo.asked_from:
        memo.moved = True
    if abs(vm.left - memo.target) < rules.granule_bytes:
        memo.reached = True
    elif memo.reached and vm.left > memo.target:
        memo.accept(vm.left, now, fell_short=False)  # it was out of memory, and has helped itself
    if vm.guest is not None and told_at != memo.told_at:
        took, before = now - memo.heard_at, memo.before
        if before is not None and took > 0:
            memo.swap_in = max(0, (vm.guest.swapped_in or 0) - (before.swapped_in or 0)) / took
            memo.faults = max(0, (vm.guest.major_faults or 0) - (before.major_faults or 0)) / took
        memo.before, memo.told_at, memo.heard_at, memo.talks = vm.guest, told_at, now, True
    return memo


def _case(vm: Vm, memo: _Memo, now: float, rules: Rules) -> _Case:
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
    case.overdue = now - memo.heard_at > _patience_s(vm, rules)
    if standing in ("never", "ignores") or (standing != "follows" and (case.overdue or case.needs)):
        case.target = vm.given
    return case


def _standing(vm: Vm, memo: _Memo, now: float, rules: Rules) -> tuple[Standing, str]:
    if not vm.wanted:
        return "never", "its balloon is not to be used (qos.memory.balloon=never)"
    if vm.barred:
        return "barred", vm.barred
    if now - memo.heard_at > _patience_s(vm, rules):
        why = f"no balloon driver in its guest has told of its memory for {_patience_s(vm, rules):g} s"
        return "silent", why
    if not memo.talks or vm.guest is None or vm.guest.available is None:
        return "silent", "its guest has not told of its memory yet"
    if _refuses(vm, memo, now, rules):
        return "ignores", (
            f"its guest gave nothing of what it was asked for: given up after {rules.ignores_after_s:g} s, to"
            f" be asked again after {rules.asks_again_after_s / 60:g} minutes"
        )
    return "follows", ""


def _patience_s(vm: Vm, rules: Rules) -> float:
    return rules.silent_after_s + 3 * vm.tells_every_s


def _refuses(vm: Vm, memo: _Memo, now: float, rules: Rules) -> bool:
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


def _needs(vm: Vm, memo: _Memo, available: int, margin: int, now: float, rules: Rules) -> bool:
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
        hollow = vm.backed > vm.left + max(16 * MiB, vm.given // 50)
        memo.renewing = memo.renewed = hollow
    return memo.renewing


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
    )
