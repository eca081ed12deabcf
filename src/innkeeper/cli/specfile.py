"""Read spec files so that every error names its line.

YAML is composed to nodes, which know where they stand, and turned into values here: only what JSON
has too, so that a file means one thing. `on` and `yes` stay words, and a MAC address stays a text,
where YAML 1.1 would make a boolean and a number in base 60 of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import yaml

from innkeeper.errors import BadRequest, InnkeeperError, NotFound, SpecError

Path = tuple[str | int, ...]

SIZE_MAX: Final = 1024 * 1024
DEPTH_MAX: Final = 24
KINDS: Final = ("instance",)
_INT: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)\.[0-9]+([eE][-+]?[0-9]+)?")


class Document:
    """One document of a file: what it describes, and the line of each field."""

    def __init__(self, file: str, value: dict[str, Any], lines: dict[Path, int]) -> None:
        self.file = file
        self.lines = lines
        self.name: str = value["name"]
        self.spec: dict[str, Any] = value["spec"]

    def error_at(self, path: Sequence[str | int], reason: str, hint: str = "") -> SpecError:
        """`FILE:LINE: field: reason`, at the line of the field or of the nearest that is there."""
        return _error(self.file, self.lines, tuple(path), reason, hint)

    def placed(self, error: InnkeeperError) -> InnkeeperError:
        """An error of the daemon about a field of this document, with its line."""
        field = error.details.get("field")
        if not isinstance(field, list | tuple):
            return error
        path = tuple(field[1:]) if field[:1] == ["body"] else tuple(field)
        if path[:1] != ("spec",) and path != ("name",):
            path = ("spec", *path)
        reason = error.message
        for said in (_dotted(path), _dotted(path[1:])):
            reason = reason.removeprefix(f"{said}: ")
        placed = self.error_at(path, reason)
        # Refused stays refused: only what it says changes, not what it is.
        return type(error)(placed.message, hint=error.hint, details=placed.details)

    def check(self) -> None:
        """Raise SpecError for the first field that is wrong. The daemon checks again: this is so that
        nothing of a file is applied when something in it is wrong."""
        from pydantic import ValidationError

        from innkeeper.spec.base import allowed_by, check_name
        from innkeeper.spec.instance import InstanceSpec

        try:
            check_name(self.name)
        except BadRequest as error:
            raise self.error_at(("name",), error.message, error.hint) from None
        try:
            InstanceSpec.model_validate(self.spec)
        except ValidationError as error:
            first = error.errors()[0]
            reason = first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                raise self.error_at(
                    ("spec", *first["loc"]), "unknown field", _near(first["loc"], InstanceSpec)
                ) from None
            hint = ""
            if first["type"] == "string_pattern_mismatch":
                reason = f"not valid: {str(first['input'])[:60]!r}"
                hint = allowed_by(first["ctx"]["pattern"])
            raise self.error_at(("spec", *first["loc"]), reason, hint) from None


def load(file: str) -> list[Document]:
    """The documents of a file, or of standard input for `-`."""
    import sys

    if file == "-":
        return parse(sys.stdin.buffer.read(SIZE_MAX + 1), "stdin")
    try:
        with open(file, "rb") as stream:
            return parse(stream.read(SIZE_MAX + 1), file)
    except FileNotFoundError:
        raise NotFound(f"No such file: {file}", hint="give the path of a YAML file") from None
    except OSError as error:
        raise BadRequest(f"Cannot read {file}: {error.strerror}") from None


def parse(data: bytes, file: str) -> list[Document]:
    """Raises SpecError with file and line for whatever is no spec."""
    if len(data) > SIZE_MAX:
        raise SpecError(f"{file}: A spec file has at most 1 MiB")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{file}:{line}: not UTF-8 text") from None
    documents = [_document(node, file) for node in _nodes(text, file) if not _is_empty(node)]
    if not documents:
        raise SpecError(f"{file}: nothing in it", hint="a spec file has kind, name and spec")
    names = [document.name for document in documents]
    for number, document in enumerate(documents):
        if document.name in names[:number]:
            raise document.error_at(("name",), f"{document.name} is described twice")
    return documents


class _Loader(yaml.BaseLoader):
    """Composes nodes, without aliases (a few lines of them can describe gigabytes) and of some depth."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.events.AliasEvent):
            raise _Refused(event.start_mark, "aliases (*name) are not supported")
        self.depth += 1
        if self.depth > DEPTH_MAX:
            raise _Refused(event.start_mark, "nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Refused(Exception):
    def __init__(self, mark: Any, reason: str) -> None:
        super().__init__(reason)
        self.line = mark.line + 1


def _nodes(text: str, file: str) -> Iterator[yaml.Node]:
    try:
        loader = _Loader(text)
        try:
            while loader.check_node():
                node = loader.get_node()
                assert node is not None, "check_node() promised one"
                yield node
        finally:
            loader.dispose()
    except _Refused as error:
        raise SpecError(f"{file}:{error.line}: {error}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError(f"{file}:{line}: not a character YAML allows") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}" if mark else ""
        raise SpecError(f"{file}{where}: not YAML: {error.problem or error.context}") from None


def _is_empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.value and node.style is None


def _document(node: yaml.Node, file: str) -> Document:
    lines: dict[Path, int] = {}
    value = _value(node, (), lines, file)
    if not isinstance(value, dict):
        raise _error(file, lines, (), "not a mapping", "a spec file has kind, name and spec")
    for key in value:
        if key not in ("kind", "name", "spec"):
            raise _error(file, lines, (key,), "unknown field", "at the top are kind, name and spec")
    kind = value.get("kind")
    if kind not in KINDS:
        what = "missing" if kind is None else f"unknown kind {kind!r}"
        raise _error(file, lines, ("kind",), what, f"write kind: {' or '.join(KINDS)}")
    if not isinstance(value.get("name"), str):
        what = "missing" if value.get("name") is None else "not a text"
        raise _error(file, lines, ("name",), what, "write name: NAME (in quotes if it is a number)")
    if not isinstance(value.get("spec"), dict):
        what = "missing" if value.get("spec") is None else "not a mapping"
        raise _error(file, lines, ("spec",), what, "see inn show NAME --yaml for one")
    return Document(file, value, lines)


def _value(node: yaml.Node, path: Path, lines: dict[Path, int], file: str) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if node.tag not in (
        "tag:yaml.org,2002:str",
        "tag:yaml.org,2002:map",
        "tag:yaml.org,2002:seq",
    ):
        raise _error(file, lines, path, f"tags ({node.tag}) are not supported")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, lines, file)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, number), lines, file) for number, item in enumerate(node.value)]
    plain = isinstance(node, yaml.ScalarNode) and node.style is None
    return _scalar(node.value) if plain else node.value


def _mapping(node: yaml.MappingNode, path: Path, lines: dict[Path, int], file: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise SpecError(f"{file}:{line}: a field name is a plain word")
        if key.value in found:
            raise SpecError(f"{file}:{line}: {_dotted((*path, key.value))}: given twice")
        lines[(*path, key.value)] = line
        found[key.value] = _value(item, (*path, key.value), lines, file)
    return found


def _scalar(text: str) -> Any:
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INT.fullmatch(text) and len(text) < 20:
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _error(file: str, lines: dict[Path, int], path: Path, reason: str, hint: str = "") -> SpecError:
    known = path
    while known and known not in lines:
        known = known[:-1]
    line = lines.get(known, 1)
    # The field names are ours; that they all lie under spec need not be said again.
    field = _dotted(path[1:] if path[:1] == ("spec",) and len(path) > 1 else path)
    message = f"{file}:{line}: {field}: {reason}" if field else f"{file}:{line}: {reason}"
    return SpecError(message, hint=hint, details={"field": list(path), "file": file, "line": line})


def _dotted(path: Iterable[str | int]) -> str:
    return ".".join(str(part) for part in path)


def _near(loc: tuple[str | int, ...], model: Any) -> str:
    """`did you mean ...?` among the fields of the model at this place."""
    import difflib
    from typing import get_args

    from pydantic import BaseModel

    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if model is None:
            return ""
    near = difflib.get_close_matches(str(loc[-1]), list(model.model_fields), n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(model.model_fields)}"
