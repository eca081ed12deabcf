"""The end of a log in an error message: what matters of it."""

from __future__ import annotations

import pytest

from innkeeper.telemetry.tail import panic_words

DUMP = """\
[    4.428615] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100
[    4.428882] CPU: 0 PID: 1 Comm: init Not tainted 6.1.0-56-cloud-amd64 #1
[    4.428882] Call Trace:
[    4.428882]  <TASK>
[    4.428882] R13: 00007ffe7d8a2930 R14: 0000000000000000 R15: 00007f561357d020
[    4.428882] Kernel Offset: 0x21200000 from 0xffffffff81000000
[    4.428882] ---[ end Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100 ]---
"""
WHY = "/init: line 331: can't create /root/dev/console: Read-only file system"
PANIC = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("booting\nlogin:", []),
        (DUMP, [PANIC]),
        (f"\x1b[31mroot: clean\r\n\r\n{WHY}\r\n{DUMP}", [WHY, PANIC]),
        ("[    0.9][    T1] VFS: no root\n[    1.0][    T1] " + PANIC, ["VFS: no root", PANIC]),
        (f"old\n{DUMP}first boot\n{DUMP}", ["first boot", PANIC]),
        # a boot since then, which hangs elsewhere
        (f"old\n{DUMP}SeaBIOS\nLinux version 6.1\nLoading\nwaiting for the root device", []),
    ],
)
def test_of_a_panic_its_reason_is_told_not_its_dump(text: str, words: list[str]) -> None:
    assert panic_words(text) == words
