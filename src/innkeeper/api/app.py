"""The HTTP API as an ASGI application, whatever carries it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from innkeeper.api import (
    advice,
    events,
    explain,
    holds,
    host,
    images,
    inspect,
    instances,
    metrics,
    snapshots,
    sockets,
    streams,
)
from innkeeper.api.admit import Admission
from innkeeper.api.deps import ApiDeps, Context
from innkeeper.api.guard import Guard
from innkeeper.api.index import Index
from innkeeper.api.respond import error_response
from innkeeper.api.trials import Trials
from innkeeper.api.validation import as_bad_request
from innkeeper.api.verbs.advise import Sources
from innkeeper.errors import BadRequest, InnkeeperError, NotFound
from innkeeper.telemetry.lasting import lasting

DESCRIPTION: Final = """\
Virtual machines on QEMU/KVM. JSON over a unix socket; every error has the form
`{"error": {"code", "message", "hint", "details"}}`.

Two WebSockets are not part of this document. `/v1/instances/{name}/console` carries the raw bytes of
the serial console as binary frames, both ways. `/v1/instances/{name}/exec` begins with a text frame
`{"argv": [...], "env": {}, "stdin": bool, "timeout_s": n}`; then binary frames to the server are stdin
and a text frame `eof` is its end; binary frames to the client begin with 1 (stdout) or 2 (stderr). The
last frame is text: `{"exit_status": n}`, `{"ended": true}` or `{"error": {...}}`. Frames without data
are to be ignored.
"""


def create_app(deps: ApiDeps) -> FastAPI:
    """The application. Its lifespan runs the index; a server that knows no lifespan uses `serving`."""
    app = FastAPI(
        title="Innkeeper",
        version=deps.version,
        description=DESCRIPTION,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=serving,
        # Whoever sends JSON need not say so: nothing else is understood anyway.
        strict_content_type=False,
        # Without a media type of its own: what each route answers with is in its `responses`.
        default_response_class=Response,
    )
    index = Index(deps.store, deps.paths)
    admission = Admission(deps.repo, index, deps.look_again)
    sources = Sources(deps.repo, deps.metering, deps.live, deps.clock)
    app.state.context = Context(deps, index, admission, sources, Trials(sources, admission))
    families = (
        instances,
        snapshots,
        explain,
        inspect,
        holds,
        streams,
        sockets,
        images,
        host,
        metrics,
        advice,
        events,
    )
    for family in families:
        app.include_router(family.router)
    app.add_exception_handler(InnkeeperError, _on_innkeeper_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_middleware(Guard)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


@contextlib.asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[None]:
    """Follow the store, and trials of advice, while the application serves."""
    assert isinstance(app, FastAPI)
    context: Context = app.state.context
    clock = context.deps.clock
    following = [
        asyncio.ensure_future(lasting(name, run, clock))
        for name, run in {
            "following the store": context.index.run,
            "trials of advice": context.trials.run,
        }.items()
    ]
    try:
        yield
    finally:
        context.deps.closing.set()
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)


async def _on_innkeeper_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, InnkeeperError)
    return error_response(error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(as_bad_request(error.errors()))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses by itself: no such path, no such method, an unreadable body."""
    assert isinstance(error, HTTPException)
    path = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return error_response(NotFound(f"There is no {path} in this API", hint="see /v1/openapi.json"))
    response = error_response(BadRequest(f"{path}: {error.detail}"))
    response.status_code = error.status_code
    return response


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The document as FastAPI makes it, less the 422 responses we never give."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for unused in ("HTTPValidationError", "ValidationError"):
            document.get("components", {}).get("schemas", {}).pop(unused, None)
        app.openapi_schema = document
    return app.openapi_schema
