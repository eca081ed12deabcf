"""What the balloon controller knows of each VM, and what it remembers of one between two steps. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from innkeeper.engine.memory import GuestMemory
from innkeeper.units import MiB


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


@dataclass(slots=True)
class Memo:
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
    vms: dict[str, Memo] = field(default_factory=dict)

    def untold(self, uid: str) -> None:
        """The VM did not get to know its last target; the next step has it told again."""
        if (memo := self.vms.get(uid)) is not None:
            memo.unsaid = True


def remembered(memo: Memo | None, vm: Vm, now: float, rules: Rules) -> Memo:
    """Of one that is new here, what its balloon leaves it is what somebody asked for. So is one that tells
    something again after a long silence: that is another driver, and the old one's doings are not its."""
    told_at = vm.guest.told_at if vm.guest else 0.0
    back = memo is not None and told_at != memo.told_at and now - memo.heard_at > patience_s(vm, rules)
    if memo is None or memo.run != (vm.run, vm.given) or back:
        memo = Memo((vm.run, vm.given), vm.left, now, vm.left, now, told_at, unsaid=back)
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


def patience_s(vm: Vm, rules: Rules) -> float:
    return rules.silent_after_s + 3 * vm.tells_every_s
