"""What passt is told: no way to the host's loopback unless asked for, and name servers all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import run
from innkeeper.cli import specargs
from innkeeper.drivers.network.user import check_udp_answers, passt_argv
from innkeeper.drivers.run import FaultyRunner, Finished, SystemRunner
from innkeeper.errors import BadRequest, Refused

UDP = ("udp", "127.0.0.1", 5353, 53)
TCP = ("tcp", "127.0.0.1", 2222, 22)
RESOLVED = "run/systemd/resolve/resolv.conf"


def host(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_loopback_of_the_host_is_closed_unless_asked_for(tmp_path: Path) -> None:
    assert "--no-map-gw" in passt_argv(7, [TCP], None, root=tmp_path)
    assert "--no-map-gw" not in passt_argv(7, [TCP], None, host_access=True, root=tmp_path)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, []),
        ({"etc/resolv.conf": "search lan\nnameserver 192.0.2.53\n"}, []),
        ({"etc/resolv.conf": "nameserver 127.0.0.1\nnameserver 192.0.2.53\n"}, []),
        ({"etc/resolv.conf": "nameserver nonsense\n"}, []),
        (
            {
                "etc/resolv.conf": "# stub\nnameserver 127.0.0.53\noptions edns0\n",
                RESOLVED: "nameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\n",
            },
            ["--dns", "192.0.2.1", "--dns", "2001:db8::1"],
        ),
        (
            {"etc/resolv.conf": "nameserver ::1\n", RESOLVED: "".join(
                f"nameserver 192.0.2.{number}\n" for number in range(1, 9)
            )},
            ["--dns", "192.0.2.1", "--dns", "192.0.2.2", "--dns", "192.0.2.3"],
        ),
        ({"etc/resolv.conf": "nameserver 127.0.0.1\n"}, ["--dns-forward", "169.254.1.1"]),
        (
            {"etc/resolv.conf": "nameserver 127.0.0.1\n", RESOLVED: "nameserver 127.0.0.1\n"},
            ["--dns-forward", "169.254.1.1"],
        ),
    ],
)  # fmt: skip
def test_name_servers_on_the_loopback_are_replaced(
    tmp_path: Path, files: dict[str, str], told: list[str]
) -> None:
    argv = passt_argv(7, [], None, root=host(tmp_path, files))
    after = argv.index("--no-map-gw") + 1
    assert argv[after : argv.index("-t")] == told
    assert not any(
        word.startswith("--dns") for word in passt_argv(7, [], None, host_access=True, root=tmp_path)
    )


class Passt(SystemRunner):
    def __init__(self, help_text: bytes) -> None:
        super().__init__()
        self._help = help_text

    async def run(self, argv: object, **_: object) -> Finished:  # type: ignore[override]
        return Finished(("passt",), 1, b"", self._help)


def test_udp_forwards_are_refused_where_their_answers_would_be_lost() -> None:
    old, new = Passt(b"  --no-map-gw\n"), Passt(b"  --no-map-gw\n  --map-host-loopback ADDR\n")
    run(check_udp_answers(new, [TCP, UDP]))
    with pytest.raises(Refused, match="UDP") as caught:
        run(check_udp_answers(old, [TCP, UDP]))
    assert "host_access=on" in caught.value.hint


def test_passt_is_asked_only_when_it_matters() -> None:
    runner = FaultyRunner(SystemRunner())
    run(check_udp_answers(runner, [TCP]))
    assert runner.calls == []


def test_the_option_for_it() -> None:
    assert specargs.network("e1000,host_access=on") == {"mode": "user", "model": "e1000", "host_access": True}
    assert specargs.network("user,host_access=off") == {"mode": "user", "host_access": False}
    with pytest.raises(BadRequest, match="host_access=yes"):
        specargs.network("user,host_access=yes")
