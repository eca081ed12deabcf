"""What people read about a field they got wrong: words, never a regular expression."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from innkeeper.api.bodies import CreateBody
from innkeeper.api.validation import as_bad_request
from innkeeper.cli.specfile import parse
from innkeeper.errors import SpecError
from innkeeper.spec.base import allowed_by
from innkeeper.spec.instance import InstanceSpec

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"display": {"vnc": "foo"}}, "spec.display.vnc: 'foo'", "127.0.0.1:5900"),
    ({"cpu": {"model": "a b"}}, "spec.cpu.model: 'a b'", "letters, digits"),
    ({"machine": {"type": "Q35!"}}, "spec.machine.type: 'Q35!'", "pc-q35-7.2"),
    ({"networks": [{"mac": "52:54"}]}, "spec.networks.0.mac: '52:54'", "52:54:00:12:34:56"),
    ({"disks": [{"name": "A B", "size": "1GiB"}]}, "name: 'A B'", "lower-case letters"),
]


@pytest.mark.parametrize(("wrong", "told", "hint"), WRONG)
def test_the_api_says_what_is_allowed(wrong: dict[str, Any], told: str, hint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CreateBody.model_validate({"name": "web", "spec": {"image": "tiny", **wrong}})
    found = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
    error = as_bad_request(found)
    assert f"Not a valid {told}" in error.message and hint in error.hint
    assert "pattern" not in error.message + error.hint


def test_a_spec_file_says_what_is_allowed() -> None:
    text = b"kind: instance\nname: web\nspec:\n  image: tiny\n  display:\n    vnc: foo\n"
    (document,) = parse(text, "web.yaml")
    with pytest.raises(SpecError) as caught:
        document.check()
    assert caught.value.message == "web.yaml:6: display.vnc: not valid: 'foo'"
    assert "127.0.0.1:5900" in caught.value.hint


@pytest.mark.parametrize("port", [5, 5899, 65536, 99999])
def test_a_port_vnc_cannot_use_is_refused(port: int) -> None:
    with pytest.raises(ValidationError, match=f"from 5900 to 65535, not {port}"):
        InstanceSpec.model_validate({"image": "tiny", "display": {"vnc": f"127.0.0.1:{port}"}})


@pytest.mark.parametrize("vnc", ["", "socket", "127.0.0.1:5900", "[::1]:65535"])
def test_other_displays_are_taken(vnc: str) -> None:
    InstanceSpec.model_validate({"image": "tiny", "display": {"vnc": vnc}})


def _patterns(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("pattern"), str):
            yield node["pattern"]
        node = list(node.values())
    if isinstance(node, list):
        for one in node:
            yield from _patterns(one)


def test_every_pattern_of_a_spec_has_words() -> None:
    found = set(_patterns(InstanceSpec.model_json_schema()))
    assert len(found) >= 5
    assert [pattern for pattern in found if not allowed_by(pattern)] == []


@pytest.mark.parametrize(
    ("type_", "fits"), [("q35", True), ("pc-q35-7.2", True), ("pc", False), ("microvm", False)]
)
def test_an_iommu_needs_a_q35(type_: str, fits: bool) -> None:
    machine = {"type": type_, "iommu": "intel"}
    if fits:
        assert InstanceSpec.model_validate({"image": "tiny", "machine": machine}).machine.iommu == "intel"
        return
    with pytest.raises(ValidationError, match="no place for an IOMMU; use q35"):
        InstanceSpec.model_validate({"image": "tiny", "machine": machine})
