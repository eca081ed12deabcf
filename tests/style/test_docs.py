"""Documentation that cannot go stale unnoticed: generated pages, links, commands, error codes, promises."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import click
import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GENERATED = DOCS / "reference"
README = ROOT / "README.md"
SPECIFICATION = ROOT / "SPECIFICATION.md"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
WRITTEN = [page for page in PAGES if GENERATED not in page.parents]
CHANGES = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
PROSE = {"as", "has"}  # what follows "inn" in a sentence
SHELL = {"|", "||", "&&", ">", "<"}
# Names anybody can reach; every other host a machine is set up to install from is that machine's own.
PUBLIC_HOSTS = ("debian.org", "ubuntu.com", "pypi.org", "pythonhosted.org", "python.org", "github.com")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_reference", ROOT / "scripts" / "gen_reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["gen_reference"] = module
    spec.loader.exec_module(module)
    return module


@cache
def _commands() -> dict[str, click.Command]:
    found: dict[str, click.Command] = _generator().all_commands()
    return found


def _blocks(text: str, kinds: tuple[str, ...]) -> Iterator[str]:
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
        if kind in kinds:
            yield block


def _prose(text: str) -> str:
    """The text without fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


# -- generated pages -------------------------------------------------------------------------------


def test_the_reference_is_up_to_date() -> None:
    assert _generator().outdated() == [], "run scripts/gen_reference.py"


# -- links -----------------------------------------------------------------------------------------


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, spaces to dashes, punctuation gone."""
    headings = re.findall(r"^#+ +(.*)$", _prose(page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{_name(page)}: {target}"
        assert not anchor or anchor in _anchors(file), f"{_name(page)}: no heading for {target}"


@pytest.mark.parametrize("page", WRITTEN, ids=_name)
def test_files_named_in_the_text_exist(page: Path) -> None:
    """`agent/plan.py` and the like; below src/innkeeper or from the top."""
    names = re.findall(r"`((?:[\w.]+/)+[\w-]+\.(?:py|service|sh|toml))(?:::[\w\[\]-]+)?`", page.read_text())
    for name in names:
        assert any((base / name).exists() for base in (ROOT, ROOT / "src" / "innkeeper")), name


def test_pages_named_in_the_code_exist() -> None:
    """Comments of the sources, scripts and Makefile that say: see docs/NAME.md."""
    missing = {
        f"{_name(file)}: {name}"
        for file in _committed()
        if file.suffix != ".md" and file != Path(__file__).resolve()
        for name in re.findall(r"\bdocs/[\w/-]+\.md\b", _text(file))
        if not (ROOT / name).exists()
    }
    assert missing == set()


def test_every_page_can_be_reached_from_the_index() -> None:
    seen, todo = set(), [README.resolve()]
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        for target in re.findall(r"\]\(([^)\s#:]+)(?:#[^)]*)?\)", page.read_text()):
            todo.append((page.parent / target).resolve())
    assert {_name(page) for page in PAGES if page.resolve() not in seen} == set()


# -- commands --------------------------------------------------------------------------------------


def test_every_command_is_in_the_readme_or_a_page() -> None:
    text = "\n".join(page.read_text() for page in WRITTEN)
    leaves = [path for path, command in _commands().items() if not isinstance(command, click.Group)]
    assert [path for path in leaves if not re.search(rf"{re.escape(path)}\b", text)] == []


def _command_lines(page: Path) -> Iterator[str]:
    """Lines that run `inn` in blocks of shell and terminal sessions, and `inn ...` in the text."""
    text = page.read_text()
    for block in _blocks(text, ("sh", "console")):
        for line in block.splitlines():
            if found := re.search(r"(?:^|\| |\$ |&& )(inn .*)", line):
                yield found[1]
    yield from re.findall(r"`(inn [a-z][^`]*)`", _prose(text))


@pytest.mark.parametrize("page", WRITTEN, ids=_name)
def test_commands_shown_have_the_verbs_and_options_there_are(page: Path) -> None:
    for line in _command_lines(page):
        words = shlex.split(line.replace("...", ""), comments=True)
        words = words[: min((at for at, word in enumerate(words) if word in SHELL), default=None)]
        if words[1] == "--state":
            del words[1:3]
        path = " ".join(words[:2])
        if path in ("inn VERB", "inn --help", "inn --version"):
            continue
        if isinstance(_commands().get(path), click.Group) and len(words) > 2:
            path = " ".join(words[:3])
        assert path in _commands(), f"{_name(page)}: {line}"
        known = {name for one in _commands()[path].params for name in one.opts} | {"--help", "-h", "--"}
        own = words[: words.index("--")] if "--" in words else words
        options = {word.partition("=")[0] for word in own if re.match(r"--?[a-z]", word)}
        assert options <= known, f"{_name(page)}: {line}: {options - known}"


# -- errors, decisions, changes --------------------------------------------------------------------


def test_every_error_code_is_explained() -> None:
    text = (DOCS / "howto" / "troubleshooting.md").read_text()
    told = set(re.findall(r"^\| `(\w+)` \|", text, re.M))
    codes = {cls.code for cls in _generator().error_classes()}
    assert codes - told == set()
    assert told - codes == {"bug"}  # a failure in a status, not an error of its own


def test_every_decision_is_listed_and_complete() -> None:
    folder = DOCS / "decisions"
    index = (folder / "README.md").read_text()
    pages = [page for page in sorted(folder.glob("*.md")) if page.name != "README.md"]
    for number, page in enumerate(pages, start=1):
        text = page.read_text()
        assert f"({page.name})" in index, page.name
        assert page.name.startswith(f"{number:04}-")
        assert text.startswith(f"# {number:04}: ")
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.M) == [
            "Context",
            "Options",
            "Decision",
            "Consequences",
        ]


def test_the_changelog_keeps_its_form() -> None:
    """Keep a Changelog 1.1: versions newest first, each with a date and sections of known names."""
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.startswith("# Changelog\n")
    versions = re.findall(r"^## (.*)$", text, re.M)
    assert versions and versions[0] == "[Unreleased]"
    for version in versions[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", version), version
    assert set(re.findall(r"^### (.*)$", text, re.M)) <= CHANGES
    for line in text.splitlines():
        assert re.match(r"(#{1,3} |- |  |[A-Z\[]|$)", line), line


# -- promises --------------------------------------------------------------------------------------


def _promises() -> list[tuple[str, str]]:
    rows = re.findall(r"^\|(.+)\|$", SPECIFICATION.read_text(), re.M)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in rows]
    return [(row[0], row[-1]) for row in cells if row[0] != "promise" and not set(row[0]) <= {"-"}]


def _has(file: Path, name: str) -> bool:
    """Whether a module defines a function or class of that name, at any depth."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(
        isinstance(node, kinds) and node.name == name for node in ast.walk(ast.parse(file.read_text()))
    )


def _takes(file: Path, sample: str) -> bool:
    """Whether a benchmark has the name of a sample as text; what its f-strings put in may be anything."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and node.value == sample:
            return True
        if isinstance(node, ast.JoinedStr):
            parts = [
                re.escape(str(one.value)) if isinstance(one, ast.Constant) else ".+" for one in node.values
            ]
            if parts[0] != ".+" and re.fullmatch("".join(parts), sample):
                return True
    return False


def test_every_promise_names_its_test_or_says_pending() -> None:
    promises = _promises()
    assert len(promises) > 40
    for promise, held_by in promises:
        names = re.findall(r"`([^`]+)`", held_by)
        assert names or held_by == "pending", f"{promise}: neither a test nor pending"
        for name in names:
            path, _, test = name.partition("::")
            file = ROOT / path
            assert file.exists(), f"{promise}: no {path}"
            if path.startswith("tests/"):
                assert not test or _has(file, test.partition("[")[0]), f"{promise}: no {name}"
            else:  # a benchmark, and the name of a sample it takes
                assert path.startswith("bench/"), f"{promise}: {name} is neither a test nor a benchmark"
                assert _takes(file, test), f"{promise}: no {name}"


# -- what must not be published --------------------------------------------------------------------


@cache
def _committed() -> list[Path]:
    """Files of the repository, or everything here where it is no repository (a release tarball)."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    names = listed.stdout.decode().split("\0") if listed.returncode == 0 else []
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


@cache
def _text(file: Path) -> str:
    try:
        return file.read_text()
    except UnicodeDecodeError:
        return ""


def _own_hosts() -> set[str]:
    """Hosts this machine installs packages from, less the public ones."""
    places = [Path("/etc/pip.conf"), Path.home() / ".pip" / "pip.conf", Path.home() / ".config/pip/pip.conf"]
    places += [*Path("/etc/apt").glob("sources.list*"), *Path("/etc/apt/sources.list.d").glob("*")]
    text = "\n".join(_text(place) for place in places if place.is_file())
    hosts = set(re.findall(r"https?://(?:[^/@\s]*@)?([\w.-]+)", text))
    return {host for host in hosts if re.search(r"[a-z]", host) and "." in host} - {
        host for host in hosts if host.endswith(PUBLIC_HOSTS)
    }


def test_nothing_of_this_machine_is_published() -> None:
    """No path of the checkout, no home directory, no package mirror of the developers."""
    machine = _own_hosts()
    if len(ROOT.parts) > 2:  # else it is a word like /src/ that may stand anywhere
        machine.add(f"{ROOT}/")
    home = re.compile(r"/home/(?!user\b|me\b|USER\b|\$|\{)[a-z]\w*|/var/tmp/\w")
    for file in _committed():
        text = _text(file)
        for word in machine:
            assert word not in text, f"{_name(file)} has {word}"
        found = home.search(text)
        assert not found, f"{_name(file)} has {found and found[0]}"


def test_commands_named_in_messages_exist() -> None:
    """A hint that cannot be followed is worse than none."""
    unknown = []
    for file in sorted((ROOT / "src").rglob("*.py")):
        texts = [
            node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)
        ]
        for text in texts:
            for name, sub in re.findall(
                r"\binn ([a-z]+)(?: ([a-z]+))?", text if isinstance(text, str) else ""
            ):
                command = _commands().get(f"inn {name}")
                if command is None and name not in PROSE:
                    unknown.append((_name(file), f"inn {name}"))
                if sub and isinstance(command, click.Group) and f"inn {name} {sub}" not in _commands():
                    unknown.append((_name(file), f"inn {name} {sub}"))
    assert unknown == []
