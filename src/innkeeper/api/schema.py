"""What responses look like, for the OpenAPI document. Responses are not checked against it while
serving (that would cost more than making them); a test does."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel

from innkeeper.spec.host import HostRecord
from innkeeper.spec.image import ImageRecord
from innkeeper.spec.instance import ForkOrigin, InstanceSpec, InstanceStatus, Wanted
from innkeeper.spec.metrics import History, Metrics
from innkeeper.spec.numa import NodeShare
from innkeeper.spec.overcommit import Account
from innkeeper.spec.snapshot import SnapshotRecord
from innkeeper.spec.why import Why


class ErrorBody(BaseModel):
    code: str
    message: str
    hint: str
    details: dict[str, Any]


class ErrorResponse(BaseModel):
    error: ErrorBody


class InstanceShort(BaseModel):
    name: str
    uid: str
    state: str
    ready: bool
    template: bool
    accelerator: str
    pid: int
    host: str
    image: str
    cpus: int
    memory: int
    addresses: list[str]
    created_at: float
    started_at: float
    note: str


class InstancePaths(BaseModel):
    state: str
    run: str
    console_log: str
    qemu_log: str


class InstanceFull(InstanceShort):
    spec: InstanceSpec
    wanted: Wanted
    status: InstanceStatus
    nodes: list[NodeShare]
    image_id: str
    fork: ForkOrigin | None
    paths: InstancePaths
    revision: int


class InstanceList(BaseModel):
    instances: list[InstanceShort]
    revision: int


class ApplyResult(BaseModel):
    instance: InstanceFull | None
    created: bool
    changed: list[str]
    needs_restart: list[str]
    needs_resume: list[str]
    reasons: dict[str, str]


class ForkResult(BaseModel):
    instances: list[InstanceFull]
    parent: str
    pause_ms: float


class SnapshotList(BaseModel):
    snapshots: list[SnapshotRecord]
    current: str


class Removed(BaseModel):
    removed: str


class Argv(BaseModel):
    argv: list[str]


class Written(BaseModel):
    bytes: int


class ImageList(BaseModel):
    images: list[ImageRecord]


class Reason(BaseModel):
    verdict: Literal["ok", "warn", "block"]
    what: str
    fix: str


class Explained(BaseModel):
    verb: str
    allowed: bool
    findings: list[Reason]


class Finding(BaseModel):
    name: str
    verdict: str
    detail: str
    repair: str
    fixable: bool


class Findings(BaseModel):
    findings: list[Finding]


class HostView(HostRecord):
    overcommit: Account


class Version(BaseModel):
    version: str
    api: int
    pid: int
    state_dir: str
    mode: str
    started_at: float
    host: str


Responses = dict[int | str, dict[str, Any]]

ERRORS: Final[Responses] = {
    400: {"model": ErrorResponse, "description": "The request is wrong; nothing was done."},
    404: {"model": ErrorResponse, "description": "There is no such thing; the hint has close names."},
    409: {
        "model": ErrorResponse,
        "description": "Refused: name taken, wrong state, no capacity, unsupported.",
    },
    500: {"model": ErrorResponse, "description": "It was tried and failed; or a bug, with an id in the log."},
}

__all__ = [
    "ERRORS",
    "History",
    "ImageRecord",
    "Metrics",
    "SnapshotRecord",
    "Why",
    "answers",
    "streams",
]


def answers(model: type[BaseModel]) -> Responses:
    """The responses of a route that answers with `model`."""
    return {200: {"model": model, "description": "Done."}, **ERRORS}


def streams(media_type: str, description: str) -> Responses:
    """The responses of a route that answers with bytes."""
    schema = (
        {"type": "string", "format": "binary"} if not media_type.startswith("text/") else {"type": "string"}
    )
    return {200: {"description": description, "content": {media_type: {"schema": schema}}}, **ERRORS}
