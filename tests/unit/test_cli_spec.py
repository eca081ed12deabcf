"""Spec files: lines of errors, one meaning, and the verbs that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_harness import Inn, inn, server

from fakes.api_server import ApiServer, Request, instance
from innkeeper import errors
from innkeeper.cli.commands.diff import differences
from innkeeper.cli.commands.set import changed_spec
from innkeeper.cli.specfile import parse

__all__ = ["inn", "server"]  # fixtures

GOOD = """\
# a comment
kind: instance
name: web
spec:
  image: tiny
  cpu: {count: 2}
  memory:
    size: 512MiB
  networks:
    - mac: 52:54:00:12:34:56
      forward:
        - {host: 8080, guest: 80}
  labels: {on: "yes", off: no, n: "1"}
"""


def test_a_file_means_one_thing() -> None:
    (document,) = parse(GOOD.encode(), "web.yaml")
    document.check()
    assert document.name == "web"
    assert document.spec["cpu"] == {"count": 2}
    assert document.spec["networks"][0]["mac"] == "52:54:00:12:34:56"
    assert document.spec["labels"] == {"on": "yes", "off": "no", "n": "1"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("size: 512MiB", "size: 512MiBs"), "web.yaml:8: memory.size: Unknown unit 'MiBs'"),
        (("size: 512MiB", "sise: 512MiB"), "web.yaml:8: memory.sise: unknown field; did you mean size?"),
        (("host: 8080", "hots: 8080"), "web.yaml:12: networks.0.forward.0."),
        (("count: 2", "count: two"), "web.yaml:6: cpu.count: "),
        (("count: 2", "count: 0"), "web.yaml:6: cpu.count: "),
        (("image: tiny", "imagen: tiny"), "web.yaml:5: imagen: unknown field; did you mean image?"),
        (("image: tiny", ""), "web.yaml:4: spec: nothing to boot from"),
        (("kind: instance\n", ""), "web.yaml:2: kind: missing"),
        (("kind: instance", "kind: volume"), "web.yaml:2: kind: unknown kind 'volume'"),
        (("name: web", "name: Web"), "web.yaml:3: name: Not a valid"),
        (("name: web", "name: 5"), "web.yaml:3: name: not a text"),
        (("name: web", "nmae: web"), "web.yaml:3: nmae: unknown field"),
        (("  image: tiny", "  image: tiny\n  image: x"), "web.yaml:6: spec.image: given twice"),
        (("image: tiny", "image: &a tiny\n  user_data: *a"), "web.yaml:6: aliases"),
        (("image: tiny", "image: !!python/object x"), "tags"),
        (("image: tiny", "image: tiny: x"), "web.yaml:5: not YAML"),
        (("image: tiny", "? [a, b]\n  : x"), "web.yaml:5: a field name is a plain word"),
        (("image: tiny", "image: \x01"), "web.yaml:5: not a character"),
        (("  image: tiny", "\timage: tiny"), "web.yaml:5: not YAML"),
        (("off: no", "off: {}"), "web.yaml:13: labels.off: "),
        (("size: 512MiB", "size: [1]"), "web.yaml:8: memory.size: "),
    ],
)
def test_errors_name_their_line(change: tuple[str, str], said: str) -> None:
    text = GOOD.replace(*change)
    assert text != GOOD
    with pytest.raises(errors.SpecError) as caught:
        for document in parse(text.encode(), "web.yaml"):
            document.check()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "nothing in it"),
        (b"---\n---\n", "nothing in it"),
        (b"# nothing\n", "nothing in it"),
        (b"- a\n- b\n", ":1: not a mapping"),
        (b"just words", ":1: not a mapping"),
        (b"a: \xff\n", ":1: not UTF-8"),
        (b"x: 1\n" * 300_000, "at most 1 MiB"),
        (b"[" * 100_000, ":1: nested too deeply"),
        (b"kind: instance\nname: a\nspec: null\n", ":3: spec: missing"),
        (b"kind: instance\nname: a\nspec: []\n", ":3: spec: not a mapping"),
        (b"{kind: instance, name: a, spec: {}}\n---\nkind: instance\nname: a\nspec: {}\n", ":4: name: a is"),
    ],
)
def test_what_is_no_spec_file(data: bytes, said: str) -> None:
    with pytest.raises(errors.SpecError, match=said):
        parse(data, "f")


def test_scalars() -> None:
    text = "kind: instance\nname: a\nspec: {a: 0x10, b: 010, c: 1.5, d: '5', e: ~, f: true, g: yes, h: -3}"
    (document,) = parse(text.encode(), "f")
    assert document.spec == {
        "a": "0x10", "b": "010", "c": 1.5, "d": "5", "e": None, "f": True, "g": "yes", "h": -3,
    }  # fmt: skip


def two(tmp_path: Path, second: str) -> str:
    file = tmp_path / "two.yaml"
    file.write_text(f"{GOOD}---\n{GOOD.replace('name: web', 'name: db').replace('2}', second)}")
    return str(file)


def test_apply_of_several(inn: Inn, server: ApiServer, tmp_path: Path) -> None:
    answer = {"instance": instance("web"), "changed": ["cpu.count"], "needs_restart": ["cpu.count"]}
    server.answer("PUT", "/v1/instances/.*", answer)
    ran = inn("apply", "-f", two(tmp_path, "3}"))
    assert ran.status == 0
    assert ran.out == "web: changed cpu.count\ndb: changed cpu.count\n"
    assert "inn: web takes up cpu.count at its next start: inn restart web\n" in ran.err
    sent = [(one.query.get("dry_run"), one.json()["spec"]["cpu"]["count"]) for one in server.requests]
    assert sent == [("true", 2), ("true", 3), (None, 2), (None, 3)]
    assert [one["name"] for one in inn("apply", "--json", "-f", two(tmp_path, "3}")).json] == ["web", "db"]


def test_nothing_is_applied_when_something_is_wrong(inn: Inn, server: ApiServer, tmp_path: Path) -> None:
    file = two(tmp_path, "none}")
    ran = inn("apply", "-f", file)
    assert ran.status == 2
    assert ran.err.startswith(f"inn: {file}:20: cpu.count: ")
    assert server.requests == []
    assert inn("apply", "-f", "/no/such.yaml").status == 3


def test_nothing_is_applied_when_the_daemon_refuses_one(inn: Inn, server: ApiServer, tmp_path: Path) -> None:
    server.answer("PUT", "/v1/instances/web", {"changed": [], "created": True})
    server.answer("PUT", "/v1/instances/db", errors.NoCapacity("No memory left"))
    ran = inn("apply", "-f", two(tmp_path, "3}"))
    assert (ran.status, ran.err) == (4, "inn: No memory left\n")
    assert all(one.query == {"dry_run": "true"} for one in server.requests)


def test_the_daemons_error_gets_its_line(inn: Inn, server: ApiServer, tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(GOOD)
    error = errors.Unsupported(
        "The image cannot change", hint="remove it", details={"field": ["spec", "image"]}
    )
    server.answer("PUT", "/v1/instances/web", error)
    ran = inn("apply", "-f", str(file))
    assert (ran.status, ran.err) == (4, f"inn: {file}:5: image: The image cannot change; remove it\n")
    error = errors.SpecError("spec.memory.size: too little", details={"field": ["spec", "memory", "size"]})
    server.answer("PUT", "/v1/instances/web", error)
    ran = inn("apply", "-f", str(file))
    assert (ran.status, ran.err) == (2, f"inn: {file}:8: memory.size: too little\n")


def test_apply_from_stdin(server: ApiServer) -> None:
    import subprocess
    import sys

    server.answer("PUT", "/v1/instances/web", {"instance": {}, "changed": [], "needs_restart": []})
    ran = subprocess.run(
        [sys.executable, "-m", "innkeeper.cli.main", "apply", "-f", "-"],
        input=GOOD,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (0, "web: unchanged\n")


SPEC = {"image": "tiny", "cpu": {"count": 1}, "boot": {"order": ["disk"]}, "networks": [{"model": "virtio"}],
        "labels": {"a": "b"}, "machine": {"type": "pc-q35-7.2"}}  # fmt: skip


def test_diff(inn: Inn, server: ApiServer, tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(GOOD)
    server.answer("GET", "/v1/instances/web", instance("web", spec=SPEC))
    ran = inn("diff", "-f", str(file))
    assert ran.status == 0
    assert "web: cpu.count: 1 -> 2\n" in ran.out
    assert "machine.type" not in ran.out, "the version pinned at creation is no difference"
    assert inn("diff", "-f", str(file), "--exit-code").status == 1
    assert {"field": "cpu.count", "old": 1, "new": 2} in inn("diff", "--json", "-f", str(file)).json[0][
        "changes"
    ]
    server.answer("GET", "/v1/instances/web", errors.NotFound("none"))
    assert inn("diff", "-f", str(file)).out == "web: would be created\n"


def test_differences() -> None:
    old: dict[str, Any] = {"machine": {"type": "pc-q35-7.2"}, "disks": [1, 2], "same": 1}
    new: dict[str, Any] = {"machine": {"type": "pc"}, "disks": [1], "same": 1, "added": True}
    assert list(differences(old, new)) == [
        ("machine.type", "pc-q35-7.2", "pc"),
        ("disks", [1, 2], [1]),
        ("added", None, True),
    ]


def test_set(inn: Inn, server: ApiServer) -> None:
    server.answer("GET", "/v1/instances/web", instance("web", spec=SPEC))
    server.answer("PATCH", "/v1/instances/web", instance("web"))
    server.answer("PUT", "/v1/instances/web", {"changed": ["cpu.count"], "needs_restart": ["cpu.count"]})
    ran = inn("set", "web", "restart_policy=always", "labels.x=y=z")
    assert (ran.status, ran.out) == (0, "web\n")
    assert server.requests[-1].json() == {"restart_policy": "always", "labels": {"a": "b", "x": "y=z"}}
    inn("set", "web", "labels.a=")
    assert server.requests[-1].json() == {"labels": {}}
    ran = inn("set", "web", "cpu.count=2", "labels.c=d")
    assert "takes up cpu.count at its next start" in ran.err
    sent = server.requests[-1].json()["spec"]
    assert sent["cpu"] == {"count": "2"} and sent["labels"] == {"a": "b", "c": "d"}
    error = errors.SpecError("Input should be positive", details={"field": ["body", "spec", "cpu", "count"]})
    server.answer("PUT", "/v1/instances/web", error)
    ran = inn("set", "web", "cpu.count=-1")
    assert (ran.status, ran.err) == (2, "inn: cpu.count: Input should be positive\n")
    assert inn("set", "web", "nonsense").status == 2
    said = errors.SpecError("spec.cpu.count: too many", details={"field": ["spec", "cpu", "count"]})
    server.answer("PUT", "/v1/instances/web", said)  # named as it was typed
    assert inn("set", "web", "cpu.count=300").err == "inn: cpu.count: too many\n"


def test_two_that_set_something_at_once_keep_both(inn: Inn, server: ApiServer) -> None:
    """What somebody else has set between our reading and our writing is not put back to what we read."""
    specs = [SPEC, {**SPEC, "labels": {"theirs": "x"}}]
    server.answer("GET", "/v1/instances/web", lambda request: instance("web", spec=specs[0]))

    def put(request: Request) -> Any:
        if request.json()["before"] != specs[-1]:
            specs.pop(0)
            return errors.Conflict("web was changed by somebody else meanwhile", details={"stale": True})
        return {"changed": ["cpu.count"], "needs_restart": []}

    server.answer("PUT", "/v1/instances/web", put)
    assert inn("set", "web", "cpu.count=2").status == 0
    sent = server.requests[-1].json()["spec"]
    assert sent["labels"] == {"theirs": "x"} and sent["cpu"] == {"count": "2"}
    server.answer("PUT", "/v1/instances/web", errors.Conflict("always", details={"stale": True}))
    assert inn("set", "web", "cpu.count=2").status == 4 and len(server.sent("PUT", "/v1/instances/web")) == 12
    server.answer("PUT", "/v1/instances/web", errors.Conflict("it is a template"))
    assert inn("set", "web", "cpu.count=2").status == 4 and len(server.sent("PUT", "/v1/instances/web")) == 13


def test_changed_spec() -> None:
    changed = changed_spec(SPEC, {"boot.order": "cdrom,disk", "networks.0.model": "e1000", "image": ""})
    assert changed["boot"]["order"] == ["cdrom", "disk"]
    assert changed["networks"] == [{"model": "e1000"}]
    assert SPEC["networks"] == [{"model": "virtio"}], "the original is as it was"
    for field in ("nothing.here", "networks.1.model", "networks.x.model", "image.x"):
        with pytest.raises(errors.SpecError, match="No such field"):
            changed_spec(SPEC, {field: "1"})


@pytest.fixture
def web(server: ApiServer) -> None:
    spec = {"image": "tiny", "cpu": {"count": 1}, "labels": {"a": "zzz"}}
    server.answer("GET", "/v1/instances/web", instance("web", spec=spec))
    answer = {"instance": {}, "changed": ["labels"], "needs_restart": []}
    server.answer("PUT", "/v1/instances/web", answer)


@pytest.mark.usefixtures("web")
def test_edit(inn: Inn, server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "sed -i s/zzz/c/")
    assert inn("edit", "web").out == "web: changed labels\n"
    assert server.requests[-1].json()["spec"]["labels"] == {"a": "c"}
    monkeypatch.setenv("EDITOR", "true")
    ran = inn("edit", "web")
    assert (ran.status, ran.err) == (0, "inn: web is unchanged\n")
    assert server.sent("PUT", "/v1/instances/web")[-1].json()["before"]["labels"] == {"a": "zzz"}
    stale = errors.Conflict("web was changed by somebody else meanwhile", details={"stale": True})
    server.answer("PUT", "/v1/instances/web", stale)
    monkeypatch.setenv("EDITOR", "sed -i s/zzz/d/")
    ran = inn("edit", "web")  # without a terminal there is nobody to look at it again
    assert ran.status == 4 and "changed by somebody else" in ran.err
    monkeypatch.setenv("EDITOR", "sed -i s/tiny/[/")
    ran = inn("edit", "web")
    assert ran.status == 2 and ran.err.startswith("inn: web.yaml:")
    monkeypatch.setenv("EDITOR", "sed -i s/web/other/")
    assert "no longer describes web" in inn("edit", "web").err
    monkeypatch.setenv("EDITOR", "false")
    ran = inn("edit", "web")
    assert ran.status == 1 and ran.err.count("\n") == 1
