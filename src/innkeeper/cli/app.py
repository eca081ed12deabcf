"""What every command gets: the global options, and a client made when first used."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from innkeeper.client.client import Client
    from innkeeper.client.instance import Instance


class App:
    def __init__(self) -> None:
        self.state: str | None = None
        self.json = False
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """Starts a daemon at the first request where none answers, and says so once."""
        if self._client is None:
            from innkeeper.client.client import connect

            self._client = connect(self.state, notify=lambda message: note(message))
        return self._client

    def quiet_client(self) -> Client:
        """A client that starts nothing."""
        from innkeeper.client.client import connect

        return connect(self.state, autostart=False)

    def instance(self, name: str) -> Instance:
        return self.client.instances.handle(name)


def note(message: str) -> None:
    """One line for the person at the terminal, beside the output."""
    print(f"inn: {message}", file=sys.stderr, flush=True)
