"""`auto` means KVM only where it really works."""

from __future__ import annotations

import pytest

from innkeeper.errors import Unsupported
from innkeeper.spec.accelerator import choose_accelerator
from innkeeper.spec.host import KvmVerdict

UNUSABLE: tuple[KvmVerdict, ...] = ("emulated", "broken", "missing")


def test_auto_takes_kvm_only_at_hardware_speed() -> None:
    assert choose_accelerator("auto", "hardware", "3000 M/s") == ("kvm", "3000 M/s")
    for verdict in UNUSABLE:
        assert choose_accelerator("auto", verdict, "why") == ("tcg", "why")


def test_asking_decides_where_it_can() -> None:
    assert choose_accelerator("tcg", "hardware", "")[0] == "tcg"
    assert choose_accelerator("kvm", "hardware", "")[0] == "kvm"


@pytest.mark.parametrize("verdict", UNUSABLE)
def test_kvm_that_does_not_work_is_refused_with_a_way_out(verdict: KvmVerdict) -> None:
    with pytest.raises(Unsupported, match="no permission") as caught:
        choose_accelerator("kvm", verdict, "no permission", "usermod -aG kvm ada")
    assert caught.value.hint.startswith("usermod -aG kvm ada, or use --accel auto")
    assert caught.value.exit_code == 4
