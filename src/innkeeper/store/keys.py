"""Every key of the store, in one place.

    instances/NAME   InstanceRecord   what the user asked for
    status/NAME      StatusRecord     what the agent observed, and of which uid
    snapshots/INSTANCE/NAME  SnapshotRecord
    trials/NAME      TrialsRecord     advice that was applied, and what became of it
    spares/UID       SpareRecord      a template's copy that waits for a name
    images/NAME      ImageRecord
    hosts/NAME       HostRecord       under the daemon's lease

Names hold no slash, so a key has exactly two parts (that of a snapshot three). A watch or list on
``instances/web`` also sees ``instances/web2``: whoever means one key compares whole keys.
"""

from __future__ import annotations

from typing import Final

INSTANCES: Final = "instances/"
STATUS: Final = "status/"
SNAPSHOTS: Final = "snapshots/"
TRIALS: Final = "trials/"
SPARES: Final = "spares/"
IMAGES: Final = "images/"
HOSTS: Final = "hosts/"


def instance(name: str) -> str:
    return INSTANCES + name


def status(name: str) -> str:
    return STATUS + name


def snapshot(instance: str, name: str) -> str:
    return f"{SNAPSHOTS}{instance}/{name}"


def snapshots_of(instance: str) -> str:
    """The prefix of all snapshots of one instance."""
    return f"{SNAPSHOTS}{instance}/"


def trials(name: str) -> str:
    return TRIALS + name


def spare(uid: str) -> str:
    return SPARES + uid


def image(name: str) -> str:
    return IMAGES + name


def host(name: str) -> str:
    return HOSTS + name


def name_of(key: str) -> str:
    """The NAME of any key above."""
    return key.partition("/")[2]
