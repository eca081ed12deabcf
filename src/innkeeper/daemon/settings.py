"""What an administrator decided about this host, kept by its daemon."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from innkeeper.agent.tune.merging import Merging
from innkeeper.daemon.host import LocalHost
from innkeeper.engine.kvm import write_json
from innkeeper.errors import BadRequest, Failed
from innkeeper.spec.overcommit import HostSettings, KsmMode

log = logging.getLogger("innkeeper.settings")


class Settings:
    """`load` first; `change` writes to disk before anything goes by it."""

    def __init__(self, host: LocalHost, state: Path) -> None:
        self._host = host
        self._file = state / "settings.json"
        self.merging: Merging | None = None

    def begin(self, make: Callable[[Callable[[], KsmMode]], Merging]) -> None:
        """Load, and have the merging of pages follow what is set."""
        self.load()
        self.merging = make(lambda: self._host.settings.ksm)
        self._host.ksm = self.merging.report

    async def run(self) -> None:
        """What has to be looked at again and again; until cancelled."""
        if self.merging is not None:
            await self.merging.run()

    async def close(self) -> None:
        if self.merging is not None:
            await self.merging.close()

    def load(self) -> None:
        """A file that cannot be read is no reason not to start: the defaults are safe."""
        try:
            self._host.settings = HostSettings.model_validate(json.loads(self._file.read_text()))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.error("the host's settings in %s cannot be read, defaults hold: %s", self._file, error)

    async def change(self, changes: dict[str, Any]) -> HostSettings:
        """Take up these fields; the others stay. Raises BadRequest, Failed when it cannot be kept, NoCapacity
        for a `never` that has no room for the pages merged by now, Unsupported for an `always` that only root
        can keep; nothing is changed then."""
        before = self._host.settings
        after = _merged(before, changes)
        if after.ksm == "never" and before.ksm != "never" and self.merging is not None:
            await self.merging.unmerge()
        if after.ksm == "always" and before.ksm != "always" and self.merging is not None:
            self.merging.refuse_unless_able()
        if not write_json(self._file, after.model_dump(mode="json")):
            raise Failed(f"Cannot write {self._file}", hint="is its disk full? see inn doctor")
        self._host.settings = after
        if self.merging is not None:
            await self.merging.look()
        return after


def _merged(before: HostSettings, changes: dict[str, Any]) -> HostSettings:
    fields = before.model_dump()
    overcommit = fields["overcommit"] | (changes.get("overcommit") or {})
    try:
        return HostSettings.model_validate(fields | changes | {"overcommit": overcommit})
    except ValidationError as error:
        one = error.errors()[0]
        raise BadRequest(f"{'.'.join(map(str, one['loc']))}: {one['msg']}") from error
