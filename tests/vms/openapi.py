"""Requests to a daemon's HTTP API, every answer checked against the API's own description."""

from __future__ import annotations

import json
import re
import socket
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

Json = Any


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Api:
    """`api("GET", "/v1/instances")` gives (status, JSON value or bytes)."""

    def __init__(self, socket_path: Path) -> None:
        self._socket = socket_path
        self._document: Json = None

    def raw(
        self, method: str, path: str, body: bytes = b"", content_type: str = "application/json"
    ) -> tuple[int, str, bytes]:
        connection = _UnixConnection(self._socket, 120.0)
        try:
            connection.request(method, path, body or None, {"Content-Type": content_type} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.headers.get_content_type(), answer.read()
        finally:
            connection.close()

    def __call__(self, method: str, path: str, body: Json = None) -> tuple[int, Json]:
        data = b"" if body is None else json.dumps(body).encode()
        status, content_type, content = self.raw(method, path, data)
        described = self._described(method, path.partition("?")[0], status)
        assert content_type in described, f"{method} {path}: {status} {content_type} is not described"
        if content_type != "application/json":
            return status, content
        value = json.loads(content)
        check(value, described[content_type].get("schema", {}), self._document, f"{method} {path}")
        return status, value

    @property
    def document(self) -> Json:
        if self._document is None:
            self._document = json.loads(self.raw("GET", "/v1/openapi.json")[2])
        return self._document

    def _described(self, method: str, path: str, status: int) -> dict[str, Json]:
        for template, operations in self.document["paths"].items():
            pattern = re.sub(r"\\\{[^}]*\\\}|\{[^}]*\}", "[^/]+", template)
            if re.fullmatch(pattern, path) and method.lower() in operations:
                responses = operations[method.lower()]["responses"]
                found = responses.get(str(status)) or responses.get(f"{status // 100}XX")
                found = found or responses.get("default")
                assert found, f"{method} {template}: status {status} is not described"
                content: dict[str, Json] = found.get("content", {})
                return content
        raise AssertionError(f"{method} {path} is not described")


_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "null": (type(None),),
    "integer": (int,), "number": (int, float),
}  # fmt: skip


def check(value: Json, schema: Json, document: Json, where: str) -> None:
    """AssertionError where `value` is not as `schema` says: the part of JSON Schema that we use."""
    if "$ref" in schema:
        target: Json = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        check(value, target, document, where)
    for one in schema.get("allOf", ()):
        check(value, one, document, where)
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        _check_choices(value, choices, document, where)
    if "enum" in schema:
        assert value in schema["enum"], f"{where}: {value!r} is none of {schema['enum']}"
    if "const" in schema:
        assert value == schema["const"], f"{where}: {value!r} is not {schema['const']!r}"
    if "type" in schema:
        kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        allowed = tuple(kind for name in kinds for kind in _TYPES[name])
        wrong_bool = isinstance(value, bool) and bool not in allowed
        assert isinstance(value, allowed) and not wrong_bool, f"{where}: {value!r} is not {kinds}"
    if isinstance(value, dict):
        _check_members(value, schema, document, where)
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            check(item, schema["items"], document, f"{where}[{index}]")


def _check_choices(value: Json, choices: list[Json], document: Json, where: str) -> None:
    told = []
    for choice in choices:
        try:
            check(value, choice, document, where)
            return
        except AssertionError as error:
            told.append(str(error))
    raise AssertionError(f"{where}: fits none of the choices: {'; '.join(told)}")


def _check_members(value: dict[str, Json], schema: Json, document: Json, where: str) -> None:
    known = schema.get("properties", {})
    for name in schema.get("required", ()):
        assert name in value, f"{where}: {name!r} is missing"
    for name, item in value.items():
        if name in known:
            check(item, known[name], document, f"{where}.{name}")
        elif schema.get("additionalProperties") is False:
            raise AssertionError(f"{where}: {name!r} is not described")
        elif isinstance(schema.get("additionalProperties"), dict):
            check(item, schema["additionalProperties"], document, f"{where}.{name}")
