"""Writes docs/reference from the code itself; `--check` says what is out of date instead.

cli.md comes from the commands' own help, api.md and openapi.json from the HTTP application, spec.md from
the pydantic models, errors.md from the error tree. Help pages and OpenAPI also depend a little on the
versions of click, FastAPI and pydantic: made-with.json has those, and where they differ `--check` compares
names only (commands and options; paths, methods and fields), so that a new release of a library fails no
test.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, cast, get_args, get_origin

import click
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from innkeeper import errors
from innkeeper.api.app import create_app
from innkeeper.api.deps import ApiDeps
from innkeeper.cli.root import cli
from innkeeper.spec import base, image, instance
from innkeeper.units import format_size

REFERENCE: Final = Path(__file__).parents[1] / "docs" / "reference"
LIBRARIES: Final = ("click", "fastapi", "pydantic")
GENERATED: Final = "<!-- made by scripts/gen_reference.py; do not edit -->\n\n"
HELP_WIDTH: Final = 100


@dataclass(frozen=True)
class Document:
    """A generated file. `names` finds what matters in its text, whatever versions the libraries have."""

    name: str
    text: str
    names: Callable[[str], set[str]]


def documents() -> list[Document]:
    openapi = _openapi()
    exact = {"names": lambda text: {text}}
    return [
        Document("cli.md", cli_page(), lambda text: set(re.findall(r"^## inn.*|--[a-z][a-z-]+", text, re.M))),
        Document("api.md", api_page(openapi), lambda text: set(re.findall(r"^## .*", text, re.M))),
        Document("openapi.json", json.dumps(openapi, indent=1, sort_keys=True) + "\n", openapi_names),
        Document("spec.md", spec_page(), **exact),
        Document("errors.md", errors_page(), **exact),
    ]


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in LIBRARIES}


# -- the command line ------------------------------------------------------------------------------


def commands(
    group: click.Group, context: click.Context
) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command below `group` with its full name and a context to ask for help in."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        inner = _context(command, name, context)
        yield inner.command_path, command, inner
        if isinstance(command, click.Group):
            yield from commands(command, inner)


def all_commands() -> dict[str, click.Command]:
    """`inn image build` -> the command."""
    return {path: command for path, command, _ in commands(cli, _root())}


def _root() -> click.Context:
    return _context(cli, "inn", None)


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    return click.Context(
        command,
        parent,
        name,
        terminal_width=HELP_WIDTH,
        max_content_width=HELP_WIDTH,
        help_option_names=["-h", "--help"],
    )


def cli_page() -> str:
    root = _root()
    parts = ["# Command line\n", "What `inn VERB --help` prints, for every verb.\n"]
    for path, command, context in [("inn", cast(click.Command, cli), root), *commands(cli, root)]:
        text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
        parts.append(f"## {path}\n\n```text\n{text.strip()}\n```\n")
    return GENERATED + "\n".join(parts)


# -- the HTTP API ----------------------------------------------------------------------------------


class _NoDaemon:
    """Stands in for everything the application is given but never asks for while it is described."""

    def __getattr__(self, name: str) -> Any:
        return self


def _openapi() -> dict[str, Any]:
    nothing: Any = _NoDaemon()
    names = ("store", "repo", "paths", "clock", "live", "metering", "images", "doctor")
    parts = dict.fromkeys(names, nothing)
    deps = ApiDeps(**parts, host="", version="1", mode="session", started_at=0.0)
    document: dict[str, Any] = create_app(deps).openapi()
    return document


def openapi_names(text: str) -> set[str]:
    document = json.loads(text)
    found = {f"{method} {path}" for path, methods in document["paths"].items() for method in methods}
    for name, schema in document["components"]["schemas"].items():
        found |= {f"{name}.{field}" for field in schema.get("properties", {})}
    return found


def api_page(document: dict[str, Any]) -> str:
    parts = [
        "# HTTP API\n",
        "The same as a machine-readable document: [openapi.json](openapi.json); a running daemon serves it\n"
        "under `/v1/openapi.json`. The socket is `api.sock` in the runtime directory\n"
        "([state directory](../howto/state.md)).\n",
        str(document["info"]["description"]),
        "Errors come with 400, 404, 409 or 500 ([errors](errors.md)). The models named below are in\n"
        "[openapi.json](openapi.json); `InstanceSpec` is described in [spec.md](spec.md).\n",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"## {method.upper()} {path}\n\n{operation['summary']}.\n")
            parts += [
                _table(("in", "name", "type", "default", "meaning"), rows)
                for rows in [list(_inputs(document, operation))]
                if rows
            ]
            parts.append(f"Answer: {_answer(operation)}.\n")
    return GENERATED + "\n".join(parts)


def _inputs(document: dict[str, Any], operation: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            continue
        schema = parameter.get("schema", {})
        yield (
            parameter["in"],
            f"`{parameter['name']}`",
            _schema_type(schema),
            _code(schema.get("default"), parameter.get("required", False)),
            parameter.get("description", schema.get("description", "")),
        )
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    for one in [body, *body.get("anyOf", [])]:
        model = _resolve(document, one)
        for name, schema in model.get("properties", {}).items():
            yield (
                "body",
                f"`{name}`",
                _schema_type(schema),
                _code(schema.get("default"), name in model.get("required", [])),
                schema.get("description", ""),
            )


def _resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = document["components"]["schemas"].get(name, {})
    return found


def _schema_type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2].removesuffix("-Input").removesuffix("-Output")
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kinds = [one for one in schema.get("anyOf", []) if one.get("type") != "null"]
    if kinds:
        return " or ".join(_schema_type(one) for one in kinds)
    if schema.get("type") == "array":
        return f"list of {_schema_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _answer(operation: dict[str, Any]) -> str:
    content = operation["responses"].get("200", {}).get("content", {})
    told = [_schema_type(one["schema"]) if kind.endswith("json") else kind for kind, one in content.items()]
    return " or ".join(f"`{one}`" for one in told if one != "any") or "nothing"


# -- the specification -----------------------------------------------------------------------------


def spec_page() -> str:
    live = sorted(instance.InstanceUpdate.model_fields)
    parts = [
        "# Fields of a specification\n",
        "A file for `inn apply` has `kind: instance`, `name` and `spec`; the fields of `spec` follow.\n"
        "Unknown fields are refused. A size is written like `512MiB`. *live*: takes effect on a running\n"
        "instance; all else takes effect at its next start, and `inn apply` and `inn set` say so. `image`,\n"
        "and the disks that are the instance's own, cannot change once it exists.\n",
    ]
    for model in _models(instance.InstanceSpec):
        parts.append(_model_section(model, live if model is instance.InstanceSpec else []))
    parts.append("# What is observed\n")
    parts.append(
        "`status` in `inn show NAME --json`. States:\n\n```text\n" + _paragraph(instance.State, 1) + "\n```\n"
    )
    parts += [_model_section(model, []) for model in _models(instance.InstanceStatus)]
    parts.append(_model_section(image.ImageRecord, []))
    return GENERATED + "\n".join(parts)


def _models(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The model and those of its fields, in the order of the fields."""
    found: dict[type[BaseModel], None] = {model: None}
    for field in model.model_fields.values():
        for one in _parts_of(field.annotation):
            if isinstance(one, type) and issubclass(one, BaseModel):
                found |= dict.fromkeys(_models(one))
    return list(found)


def _parts_of(annotation: Any) -> Iterator[Any]:
    yield annotation
    for one in get_args(annotation):
        yield from _parts_of(one)


def _paragraph(cls: type, number: int) -> str:
    return inspect.cleandoc((inspect.getdoc(cls) or "").split("\n\n")[number])


def _model_section(model: type[BaseModel], live: list[str]) -> str:
    doc = inspect.cleandoc(model.__doc__ or "")
    about = f"{' '.join(doc.split())}\n\n" if doc and model.__doc__ is not BaseModel.__doc__ else ""
    rows = [
        (
            f"`{name}`",
            _field_type(field),
            _default(field),
            (field.description or "") + (" *live*" if name in live else ""),
        )
        for name, field in model.model_fields.items()
    ]
    return f"## {model.__name__}\n\n{about}" + _table(("field", "type", "default", "meaning"), rows)


def _field_type(field: FieldInfo) -> str:
    if _is_size(field.metadata):
        return "size"
    if any(getattr(one, "pattern", None) == base.NAME_PATTERN for one in field.metadata):
        return "name"
    limits = ", ".join(filter(None, map(_limit, field.metadata)))
    return _type_name(field.annotation) + (f" ({limits})" if limits else "")


def _is_size(extras: Any) -> bool:
    return any(getattr(one, "func", None) is format_size for one in extras)


def _limit(constraint: Any) -> str:
    for kind, words in ((Ge, "at least"), (Gt, "more than"), (Le, "at most"), (Lt, "less than")):
        if isinstance(constraint, kind):
            return f"{words} {getattr(constraint, kind.__name__.lower())}"
    if isinstance(constraint, MaxLen):
        return f"length at most {constraint.max_length}"
    if isinstance(constraint, MinLen):
        return f"length at least {constraint.min_length}"
    return ""


def _type_name(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation == base.Name:
        return "name"
    if origin is Annotated:
        return "size" if _is_size(args[1:]) else _type_name(args[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(one) for one in args if one is not type(None))
    if origin is tuple:
        return f"list of {_type_name(args[0])}"
    if origin is dict:
        return f"map of {_type_name(args[0])} to {_type_name(args[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}.get(
        getattr(annotation, "__name__", ""), getattr(annotation, "__name__", str(annotation))
    )


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return _code(cast(Callable[[], Any], field.default_factory)(), False)
    if field.default is PydanticUndefined:
        return "required"
    if _is_size(field.metadata):
        return f"`{format_size(field.default)}`"
    return _code(field.default, False)


def _code(value: Any, required: bool) -> str:
    if required:
        return "required"
    if value is None or value == "":
        return ""
    if isinstance(value, BaseModel):
        return "its own defaults"
    if isinstance(value, tuple | list) and any(isinstance(one, BaseModel) for one in value):
        return f"one {type(value[0]).__name__}"
    return f"`{json.dumps(value, default=str) if not isinstance(value, str) else value}`"


# -- errors ----------------------------------------------------------------------------------------


def error_classes(
    cls: type[errors.InnkeeperError] = errors.InnkeeperError,
) -> list[type[errors.InnkeeperError]]:
    return [cls, *(below for sub in cls.__subclasses__() for below in error_classes(sub))]


def errors_page() -> str:
    picture = (errors.__doc__ or "").split("\n\n")[1]
    rows = [
        (f"`{cls.code}`", f"`{cls.__name__}`", str(cls.http_status), str(cls.exit_code))
        for cls in error_classes()
    ]
    return (
        GENERATED
        + (
            "# Errors\n\n"
            'In the API an error is `{"error": {"code", "message", "hint", "details"}}`; in Python a class\n'
            "of `innkeeper.errors`; on the command line one line on stderr and an exit status. What each\n"
            "code means and what to do: [troubleshooting](../howto/troubleshooting.md).\n\n"
            f"```text\n{inspect.cleandoc(picture)}\n```\n\n"
        )
        + _table(("code", "class", "HTTP status", "exit status"), rows)
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), line(tuple("---" for _ in head)), *map(line, rows)]) + "\n"


# -- writing and checking --------------------------------------------------------------------------


def outdated(folder: Path = REFERENCE) -> list[str]:
    """The names of the files that are not what the code says now."""
    made_with = folder / "made-with.json"
    same = made_with.exists() and json.loads(made_with.read_text()) == versions()
    stale = [] if made_with.exists() else [made_with.name]
    for document in documents():
        path = folder / document.name
        there = path.read_text() if path.exists() else ""
        if there == document.text:
            continue
        if same or not there or document.names(there) != document.names(document.text):
            stale.append(document.name)
    return stale


def write(folder: Path = REFERENCE) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for document in documents():
        (folder / document.name).write_text(document.text)
    (folder / "made-with.json").write_text(json.dumps(versions(), indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/reference from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if something is outdated")
    if not parser.parse_args().check:
        write()
        return 0
    stale = outdated()
    for name in stale:
        print(f"docs/reference/{name} is out of date: run scripts/gen_reference.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
