"""NoCloud seeds: a small ISO, labelled `cidata`, from which cloud-init configures a guest.

Source: cloud-init's documentation of the NoCloud datasource. The same arguments give the same bytes.
"""

from __future__ import annotations

import io
import json
import threading
import time as real_time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from pycdlib import dates, headervd, pycdlib

from innkeeper.errors import BadRequest

LABEL: Final = "cidata"
EMPTY_USER_DATA: Final = "#cloud-config\n{}\n"


def seed_iso(*, hostname: str, instance_id: str, user_data: str, network_config: str = "") -> bytes:
    """The image of a seed. cloud-init runs its per-instance steps again when `instance_id` changes.

    `user_data` is a cloud-config, a script or any other form cloud-init knows; empty means no wishes.
    `network_config` (network config version 1 or 2) is left out when empty, so that the guest's default
    (DHCP) holds. Raises BadRequest for an empty or many-lined name or id.
    """
    for what, text in (("host name", hostname), ("instance id", instance_id)):
        if not text or not text.isprintable():
            raise BadRequest(f"{text!r} is no {what} for a cloud-init seed")
    # JSON is YAML: nothing to escape by hand.
    meta = {"instance-id": instance_id, "local-hostname": hostname}
    files = {"meta-data": json.dumps(meta) + "\n", "user-data": user_data or EMPTY_USER_DATA}
    if network_config:
        files["network-config"] = network_config
    with _stopped_clock():
        return _build({name: text.encode() for name, text in files.items()})


def _build(files: dict[str, bytes]) -> bytes:
    iso, image = pycdlib.PyCdlib(), io.BytesIO()
    iso.new(interchange_level=3, vol_ident=LABEL, joliet=3, rock_ridge="1.09")
    for name, content in files.items():
        plain = name.upper().replace("-", "_")
        iso.add_fp(
            io.BytesIO(content),
            len(content),
            f"/{plain}.;1",
            rr_name=name,
            joliet_path=f"/{name}",
            file_mode=0o100444,
        )
    iso.write_fp(image)
    iso.close()
    return image.getvalue()


class _Stopped:
    """Stands in for the `time` module: 1980-01-01 (the earliest date all tools accept) in UTC."""

    localtime = staticmethod(real_time.gmtime)
    strftime = staticmethod(real_time.strftime)

    @staticmethod
    def time() -> float:
        return 315532800.0


_clock_lock = threading.Lock()


@contextmanager
def _stopped_clock() -> Iterator[None]:
    """pycdlib puts the present time and time zone into the image, and takes no other."""
    modules: tuple[Any, ...] = (dates, headervd, pycdlib)
    with _clock_lock:
        before = [module.time for module in modules]
        try:
            for module in modules:
                module.time = _Stopped
            yield
        finally:
            for module, old in zip(modules, before, strict=True):
                module.time = old
