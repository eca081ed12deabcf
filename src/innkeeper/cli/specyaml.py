"""Write an instance as the file that `inn apply` takes back unchanged."""

from __future__ import annotations

from typing import Any

import yaml

from innkeeper.spec.instance import InstanceSpec


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, lists set in."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def brief(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec without what is default anyway; what was pinned at creation stays."""
    return InstanceSpec.model_validate(spec).model_dump(mode="json", exclude_defaults=True)


def full(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec with every default filled in, as the daemon sees it."""
    return InstanceSpec.model_validate(spec).model_dump(mode="json")


def to_yaml(name: str, spec: dict[str, Any]) -> str:
    document = {"kind": "instance", "name": name, "spec": brief(spec)}
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
