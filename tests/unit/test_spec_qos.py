"""spec/qos.py: the triple, its units, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from innkeeper.errors import BadRequest
from innkeeper.spec.qos import CpuQos, MemoryQos, Qos, share_number
from innkeeper.units import MiB, format_cores, parse_cores


@pytest.mark.parametrize(
    ("text", "millicores", "shown"),
    [("1.5", 1500, "1.5"), ("1500m", 1500, "1.5"), (2, 2000, "2"), (0.25, 250, "250m"), ("75m", 75, "75m"),
     ("0", 0, "0"), ("0.001", 1, "1m")],
)  # fmt: skip
def test_cores(text: str | float, millicores: int, shown: str) -> None:
    assert parse_cores(text) == millicores
    assert format_cores(millicores) == shown
    assert parse_cores(shown) == millicores


@pytest.mark.parametrize("text", ["-1", "1.5k", "1.5M", "", "1500mm", "0.0001", "1.5m", True, "one", 1e-9])
def test_no_cores(text: Any) -> None:
    with pytest.raises(BadRequest):
        parse_cores(text)


def test_words_are_numbers() -> None:
    assert [share_number(word) for word in ("low", "normal", "high", 77)] == [500, 1000, 2000, 77]
    assert CpuQos.model_validate({"shares": "1234"}).shares == 1234


@pytest.mark.parametrize(
    ("model", "fields", "told"),
    [
        (CpuQos, {"reservation": 2, "limit": 1}, "reservation of 2 cores is more than the limit of 1"),
        (CpuQos, {"limit": 0}, "limit of 0"),
        (CpuQos, {"limit": "1500"}, "written like 1500m"),
        (CpuQos, {"limit": "-1"}, "Not an amount of CPU"),
        (CpuQos, {"limit": "5MiB"}, "Not an amount of CPU"),
        (CpuQos, {"shares": 0}, "write low, normal, high or a number from 1 to 100000"),
        (CpuQos, {"shares": "huge"}, "Not shares: huge; write low, normal, high or a number"),
        (CpuQos, {"shares": 100_001}, "Not shares: 100001"),
        (CpuQos, {"shares": -1}, "Not shares: -1"),
        (CpuQos, {"shares": True}, "Not shares: True"),
        (CpuQos, {"shares": 1.5}, "Not shares: 1.5"),
        (CpuQos, {"shares": "9" * 5000}, "Not shares"),
        (MemoryQos, {"reservation": "2GiB", "limit": "1GiB"}, "of 2GiB is more than the limit of 1GiB"),
        (MemoryQos, {"limit": "1 core"}, "Unknown unit"),
        (MemoryQos, {"swap": "sometimes"}, "'sometimes'; write auto, never, or how much at most"),
        (MemoryQos, {"swap": True}, "Not what may be swapped"),
        (MemoryQos, {"swap": []}, "Not what may be swapped"),
        (Qos, {"network": {}}, "Extra inputs"),
    ],
)  # fmt: skip
def test_refused(model: type[Any], fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told) as caught:
        model.model_validate(fields)
    assert len(caught.value.errors()) == 1, "one thing is wrong, and is said once"


def test_empty_text_is_what_is_so_by_default() -> None:
    asked = {"shares": "low", "reservation": "250m", "limit": "2"}
    emptied = CpuQos.model_validate(dict.fromkeys(asked, ""))
    assert emptied == CpuQos() != CpuQos.model_validate(asked)
    fields = ("shares", "reservation", "limit", "swap", "balloon")
    assert MemoryQos.model_validate(dict.fromkeys(fields, "")) == MemoryQos()
    assert Qos.model_validate({"cpu": "", "memory": "", "disk": ""}) == Qos()


def test_a_limit_is_taken_away_and_it_comes_back_as_it_was() -> None:
    assert CpuQos.model_validate({"limit": "", "shares": ""}) == CpuQos()
    assert MemoryQos.model_validate({"swap": ""}).swap == "auto"
    whole = Qos.model_validate(
        {"cpu": {"reservation": "250m", "limit": 1.5, "shares": "high"}, "memory": {"swap": "64MiB"}}
    )
    assert Qos.model_validate(whole.model_dump(mode="json")) == whole
    assert whole.cpu.limit == 1500 and whole.memory.swap == 64 * MiB
