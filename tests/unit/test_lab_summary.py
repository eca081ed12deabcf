"""The lab's summary, and what it carries along."""

from __future__ import annotations

import tarfile
from io import BytesIO

import pytest
from lab.image import command_line
from lab.nested import SPEC, within
from lab.summary import read_junit, status, table

from innkeeper.errors import Failed
from innkeeper.spec.instance import InstanceSpec
from lab import payload

JUNIT = """<testsuites><testsuite name="pytest">
<testcase classname="tests.lab.test_kvm_lab" name="test_exits_are_counted[npt]" time="1.25">
 <properties><property name="pause_ms" value="12"/></properties></testcase>
<testcase classname="tests.lab.test_kvm_lab" name="test_it_breaks" time="2">
 <failure message="assert 1 == 2&#10;and more">trace</failure></testcase>
<testcase classname="tests.lab.test_numa_lab" name="test_two" time="0">
 <skipped message="one node"/></testcase>
<testcase classname="tests.lab.test_x_lab" name="test_e" time="1"><error message="setup"/></testcase>
</testsuite></testsuites>"""


def test_every_test_is_in_the_table_with_what_it_noted() -> None:
    text = table(read_junit(JUNIT))
    assert "kvm: exits are counted [npt]" in text and "pause_ms = 12" in text
    assert "assert 1 == 2" in text and "and more" not in text
    assert "1 passed, 2 failed, 1 skipped; 4 s of tests" in text


@pytest.mark.parametrize(
    ("keep", "expected"),
    [(("passed",), 0), (("passed", "skipped"), 0), (("passed", "failed"), 1), (("skipped",), 1), ((), 1)],
)
def test_it_fails_unless_something_passed_and_nothing_failed(keep: tuple[str, ...], expected: int) -> None:
    assert status([one for one in read_junit(JUNIT) if one.outcome in keep]) == expected


def test_what_is_no_result_is_refused() -> None:
    with pytest.raises(ValueError, match="JUnit"):
        read_junit("Killed")


def test_the_archive_of_packages_has_what_the_tests_import() -> None:
    names = {name.partition("/")[0] for name, _ in payload.package_files(["pydantic", "pytest"])}
    assert {"pydantic", "pydantic_core", "pytest", "_pytest", "pluggy", "typing_extensions.py"} <= names
    assert "ruff" not in names


def test_the_tree_is_carried_as_roots() -> None:
    with tarfile.open(fileobj=BytesIO(payload.source_archive())) as archive:
        members = {member.name: member for member in archive}
    assert {"src/innkeeper/errors.py", "tests/conftest.py", "lab/nested.py", "pyproject.toml"} <= set(members)
    assert {member.uid for member in members.values()} == {0}


def test_requirements_that_do_not_hold_here_are_left_out() -> None:
    required = ["a>=1", "b; python_version < '3'", "c[extra]>=2", "d; extra == 'dev'"]
    assert list(payload.needed(required)) == ["a", "c"]


def test_a_lab_that_was_kept_is_known_by_what_its_spec_asked_for() -> None:
    wanted = {**SPEC, "image": "lab-1"}
    whole = InstanceSpec.model_validate(wanted).model_dump(mode="json")
    assert within(wanted, whole)
    for change in ({"image": "lab-2"}, {"memory": {"size": "2GiB"}}, {"disks": []}):
        assert not within({**wanted, **change}, whole)


def test_the_boot_loaders_command_line_is_kept() -> None:
    config = "set timeout=0\n  linux /vmlinuz root=UUID=1-2 ro quiet \ninitrd /initrd.img\nboot\n"
    assert command_line(config) == "root=UUID=1-2 ro quiet"
    assert command_line("linux_16 /old x\n\tlinux\t/vmlinuz\n") == ""
    with pytest.raises(Failed, match="no kernel"):
        command_line("set timeout=0\nlinuxefi /x\n")
