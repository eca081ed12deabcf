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
        (CpuQos, {"shares": 0}, "greater than or equal to 1"),
        (CpuQos, {"shares": "huge"}, "'low', 'normal' or 'high'"),
        (MemoryQos, {"reservation": "2GiB", "limit": "1GiB"}, "of 2GiB is more than the limit of 1GiB"),
        (MemoryQos, {"limit": "1 core"}, "Unknown unit"),
        (MemoryQos, {"swap": "sometimes"}, "Not a size"),
        (Qos, {"network": {}}, "Extra inputs"),
    ],
)  # fmt: skip
def test_refused(model: type[Any], fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        model.model_validate(fields)


def test_a_limit_is_taken_away_and_it_comes_back_as_it_was() -> None:
    assert CpuQos.model_validate({"limit": ""}).limit is None
    whole = Qos.model_validate(
        {"cpu": {"reservation": "250m", "limit": 1.5, "shares": "high"}, "memory": {"swap": "64MiB"}}
    )
    assert Qos.model_validate(whole.model_dump(mode="json")) == whole
    assert whole.cpu.limit == 1500 and whole.memory.swap == 64 * MiB
