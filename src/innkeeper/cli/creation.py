"""Create an instance from options, and take it back when the user presses ctrl-C meanwhile."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from innkeeper import errors
from innkeeper.cli import names, specargs
from innkeeper.cli.app import App, note
from innkeeper.cli.progress import busy

if TYPE_CHECKING:
    from innkeeper.client.instance import Instance

_NAME_ATTEMPTS: Final = 5
# After ctrl-C the request may still be on its way: look again a few times.
_LOOKS: Final = 5
_LOOK_EVERY_S: Final = 0.1
# Both clocks are this host's; what the daemon rounds must not make a new VM look like an old one.
_CLOCK_SLACK_S: Final = 0.1


class Creation:
    def __init__(self, app: App, options: dict[str, Any]) -> None:
        self._app = app
        self._name: str | None = options.get("name")
        self._template: str | None = options.get("template")
        if self._template:
            base = app.client.instances.get_data(self._template)["spec"]
            self.spec = specargs.of_copy(base, options)
        else:
            self.spec = specargs.build(options, specargs.read_user_data)

    def create(self, *, start: bool, wait: str, **options: Any) -> Instance:
        """Made, and when this returns `running` or `ready`, as `wait` says."""
        if self._template:
            options["template"] = self._template
        if self._name is not None:
            return self._try(self._name, start, wait, options)
        for _ in range(_NAME_ATTEMPTS - 1):
            try:
                return self._try(names.generate(), start, wait, options)
            except errors.NameTaken:
                continue
        return self._try(names.generate(), start, wait, options)

    def _try(self, name: str, start: bool, wait: str, options: dict[str, Any]) -> Instance:
        begin = time.time()
        try:
            with busy(f"{'starting' if start else 'creating'} {name}"):
                return self._app.client.instances.create(
                    self.spec, name=name, start=start, wait=wait, **options
                )
        except KeyboardInterrupt:
            self._take_back(name, begin)
            raise

    def _take_back(self, name: str, begin: float) -> None:
        """Remove what we were creating, and never what had this name before us: then the daemon
        would have refused ours at once."""
        try:
            client = self._app.quiet_client()
            for _ in range(_LOOKS):
                try:
                    data = client.instances.get_data(name)
                except errors.NotFound:
                    time.sleep(_LOOK_EVERY_S)
                    continue
                if data.get("created_at", 0) >= begin - _CLOCK_SLACK_S:
                    client.instances.handle(name).remove(force=True)
                    note(f"interrupted; removed {name} again")
                return
        except errors.NotFound:
            pass
        except errors.InnkeeperError as error:
            note(f"interrupted, and {name} may be left behind: {error}")
