"""A template from an image in one step: boot it, wait until it is at rest, freeze it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from innkeeper import errors

if TYPE_CHECKING:
    from innkeeper.client.client import Client
    from innkeeper.client.instance import Instance

# The agent answers before a system has started all of its services: what is frozen then would go on
# starting in every copy. Any answer will do: a degraded system is at rest as well.
AT_REST: Final = (
    "if command -v systemctl >/dev/null; then systemctl is-system-running --wait >/dev/null; fi; sync"
)
AT_REST_TIMEOUT_S: Final = 180.0


def template_of_image(
    client: Client,
    spec: Mapping[str, Any],
    *,
    name: str,
    pool: int = 0,
    timeout_s: float | None = None,
) -> Instance:
    """Boot `spec`, which names an image, as `name`, and freeze it as the template behind that image.
    Nothing is left of it when that fails."""
    instance = client.instances.create(
        spec, name=name, start=True, wait="ready", cold=True, timeout_s=timeout_s
    )
    try:
        with contextlib.suppress(errors.GuestTimeout, errors.AgentMissing):
            instance.exec(["sh", "-c", AT_REST], timeout_s=AT_REST_TIMEOUT_S)
        return instance.template(pool=pool, serves_image=True, timeout_s=timeout_s)
    except BaseException:
        with contextlib.suppress(errors.InnkeeperError):
            instance.remove(force=True)
        raise
