"""The plainest command lines, `inn start NAME...` and its like, without a parser.

Importing click takes 8 ms, a quarter of what such a command takes altogether. With any option they go
through click like all others, to the modules in `commands`; a test holds the two ways together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from innkeeper.cli.app import App
from innkeeper.cli.many import try_each

if TYPE_CHECKING:
    from innkeeper.client.instance import Instance

ACTIONS: Final[dict[str, Callable[[Instance], Instance]]] = {
    "start": lambda instance: instance.start(wait="running"),
    "kill": lambda instance: instance.kill(),
    "pause": lambda instance: instance.pause(),
    "resume": lambda instance: instance.resume(),
}


def run(args: list[str], app: App) -> int | None:
    """The exit status; None for a command line that is not that plain."""
    verb, names = (args[0], args[1:]) if args else ("", [])
    if verb not in ACTIONS or not names or any(name.startswith("-") for name in names):
        return None
    act = ACTIONS[verb]
    return try_each(app, names, lambda name: act(app.instance(name)).data)
