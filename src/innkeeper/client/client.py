"""The SDK's entry: `connect()` gives a Client, whose resources mirror the HTTP API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from innkeeper import errors
from innkeeper.client.instance import Instance, check_existing_name
from innkeeper.client.transport import READ_S, ServerEvent, Transport, segment, verb_deadline
from innkeeper.paths import Paths, default_paths

Json = dict[str, Any]
Progress = Callable[[Json], object]

# The doctor runs guests and looks at the whole host.
_DOCTOR_S = 180.0
# Building a Debian image from a slow mirror.
_BUILD_S = 3600.0


def connect(
    state: str | None = None,
    *,
    autostart: bool = True,
    notify: Callable[[str], None] = lambda message: None,
) -> Client:
    """A client of this user's daemon, or of the one with the state directory `state`.

    Nothing is sent before the first request. Where no daemon answers then, one is started in the
    background (unless `autostart` is false), and `notify` is told so.
    """
    paths = default_paths(state)
    own = f" --state {state}" if state else ""

    def start() -> None:
        from innkeeper.client.autostart import start_daemon

        start_daemon(paths, notify, stop_command=f"inn{own} serve --stop")

    return Client(Transport(paths, start if autostart else None))


class Client:
    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.instances = Instances(transport)
        self.images = Images(transport)
        self.host = Host(transport)

    @property
    def paths(self) -> Paths:
        return self.transport.paths

    def version(self, *, timeout_s: float = READ_S) -> Json:
        """The daemon's version, pid, mode and state directory."""
        answer: Json = self.transport.json("GET", "/v1/version", timeout_s=timeout_s)
        return answer

    def metrics(self, *, max_age_s: float | None = None) -> Json:
        """What all instances and the host use now: `host`, `instances`. With `max_age_s` they are read
        again if what is known is older; without, they are at most some seconds old."""
        answer: Json = self.transport.json("GET", "/v1/metrics", query={"max_age_s": max_age_s})
        return answer

    def advice(self, *, window_s: float | None = None, min_data_s: float | None = None) -> Json:
        """What would pay, of all instances that run: `host`, `instances`; see Instance.advice."""
        from innkeeper.client.advice import report

        return report(self.transport, window_s, min_data_s)

    def events(self, *, since: int | None = None, prefix: str | None = None) -> Iterator[ServerEvent]:
        """Every change in the store, as it happens, from the revision `since` on."""
        return self.transport.events("GET", "/v1/events", query={"from": since, "prefix": prefix})


class Instances:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list_data(self) -> list[Json]:
        """The short forms of all instances, sorted by name."""
        answer = self._transport.json("GET", "/v1/instances")
        instances: list[Json] = answer["instances"]
        return instances

    def list(self) -> list[Instance]:
        return [Instance(self._transport, data) for data in self.list_data()]

    def get(self, name: str) -> Instance:
        return Instance(self._transport, self.get_data(name))

    def get_data(self, name: str) -> Json:
        check_existing_name(name)
        answer: Json = self._transport.json("GET", f"/v1/instances/{segment(name)}")
        return answer

    def handle(self, name: str) -> Instance:
        """A handle without asking the daemon; whether it exists shows at the first verb."""
        check_existing_name(name)
        return Instance(self._transport, {"name": name})

    def create(
        self,
        spec: Mapping[str, Any],
        *,
        name: str | None = None,
        start: bool = False,
        wait: str = "none",
        timeout_s: float | None = None,
        remove_when_ended: bool = False,
        keep_on_failure: bool = False,
        hold: str = "",
        template: str = "",
        cold: bool = False,
    ) -> Instance:
        """A new instance. `wait` is `none`, `running` or `ready`; when its start fails it is removed
        again, unless `keep_on_failure`. `hold`: see client.hold. It starts from that `template`, or from one
        behind its image, if there is one like it and it is not to be `cold`."""
        body: Json = {
            "spec": dict(spec),
            "start": start,
            "wait": wait,
            "remove_when_ended": remove_when_ended,
            "keep_on_failure": keep_on_failure,
        }
        if name is not None:
            body["name"] = name
        if hold:
            body["hold"] = hold
        if template:
            body["template"] = template
        if cold:
            body["cold"] = True
        if timeout_s is not None:
            body["timeout_s"] = timeout_s
        data = self._transport.json("POST", "/v1/instances", body=body, timeout_s=verb_deadline(timeout_s))
        return Instance(self._transport, data)

    def apply(
        self,
        name: str,
        spec: Mapping[str, Any],
        *,
        dry_run: bool = False,
        before: Mapping[str, Any] | None = None,
    ) -> Json:
        """Create it, or make it so: {"instance", "created", "changed", "needs_restart"}. With `dry_run`,
        only say what that would change, or raise what it would. With `before`, the spec as it was read:
        Conflict (`details["stale"]`) where somebody has changed it since."""
        answer: Json = self._transport.json(
            "PUT",
            f"/v1/instances/{segment(name)}",
            query={"dry_run": dry_run or None},
            body={"spec": dict(spec), **({} if before is None else {"before": dict(before)})},
            timeout_s=verb_deadline(None),
        )
        return answer


class Images:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> list[Json]:
        answer = self._transport.json("GET", "/v1/images")
        images: list[Json] = answer["images"] if isinstance(answer, dict) else answer
        return images

    def get(self, name: str) -> Json:
        answer: Json = self._transport.json("GET", f"/v1/images/{segment(name)}")
        return answer

    def remove(self, name: str) -> None:
        self._transport.json("DELETE", f"/v1/images/{segment(name)}", timeout_s=verb_deadline(None))

    def build(
        self,
        recipe: str,
        *,
        name: str | None = None,
        packages: Sequence[str] = (),
        size: str | None = None,
        arch: str = "x86_64",
        on_progress: Progress = lambda event: None,
    ) -> Json:
        """Build an image from one of our recipes, `tiny` or `debian`; the latter with more `packages`, and
        on a disk of `size`, such as `8GiB`; the former also for `aarch64` and `riscv64`."""
        body: Json = {"recipe": recipe}
        if name:
            body["name"] = name
        if packages:
            body["packages"] = [*packages]
        if size:
            body["size"] = size
        if arch != "x86_64":
            body["arch"] = arch
        return self._make("/v1/images/build", body, on_progress)

    def import_(
        self, name: str, path: str, *, os: str = "linux", on_progress: Progress = lambda event: None
    ) -> Json:
        """Take a disk image of the daemon's host into the catalogue; `os` is what system is on it: `linux`,
        `windows` or `other`."""
        body = {"name": name, "path": path} | ({"os": os} if os != "linux" else {})
        return self._make("/v1/images/import", body, on_progress)

    def _make(self, path: str, body: Json, on_progress: Progress) -> Json:
        for event in self._transport.events("POST", path, body=body, body_timeout_s=_BUILD_S):
            data = event.json()
            if event.kind == "error":
                raise errors.from_dict(data.get("error", data))
            if event.kind == "done":
                image: Json = data.get("image", data) if isinstance(data.get("image"), dict) else data
                return image
            on_progress(data)
        raise errors.DaemonUnreachable(
            "The daemon ended before the image was done", hint="try again; see its log"
        )


class Host:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def show(self) -> Json:
        """What this host has: CPUs, memory, accelerator, QEMU."""
        answer: Json = self._transport.json("GET", "/v1/host", timeout_s=_DOCTOR_S)
        return answer

    def history(self, *, since: float | None = None, resolution_s: float | None = None) -> Json:
        """What the host used, see Instance.history."""
        query = {"since": since, "resolution": resolution_s}
        answer: Json = self._transport.json("GET", "/v1/metrics/history", query=query)
        return answer

    def cpu_models(self, accelerator: str | None = None, model: str | None = None) -> Json:
        """What CPU models and flags this host can give, or one model: {"models": [{"name", "flags",
        "missing", "runnable", ...}], "flags", "accelerator", "qemu", ...}."""
        query = {"accelerator": accelerator, "model": model}
        answer: Json = self._transport.json("GET", "/v1/host/cpu-models", query=query, timeout_s=_DOCTOR_S)
        return answer

    def set_hugepages(self, pages: Mapping[str, int], *, node: int | None = None) -> Json:
        """Reserve huge pages, by size (`{"2MiB": 512}`), on one NUMA node or the whole host. All that are
        asked for, or none."""
        body: Json = {"hugepages": dict(pages)} | ({"node": node} if node is not None else {})
        answer: Json = self._transport.json("PATCH", "/v1/host", body=body, timeout_s=_DOCTOR_S)
        return answer

    def set(self, **settings: Any) -> Json:
        """Change settings of the host, such as `ksm="never"` or `overcommit={"memory": 1.5, "cpu": None}`,
        and `hugepages={"2MiB": 512}` with `node=0`."""
        answer: Json = self._transport.json("PATCH", "/v1/host", body=settings, timeout_s=_DOCTOR_S)
        return answer

    def doctor(self) -> list[Json]:
        """Findings: {"name", "verdict", "detail", "repair", "fixable"}."""
        findings: list[Json] = self._transport.json("GET", "/v1/doctor", timeout_s=_DOCTOR_S)["findings"]
        return findings

    def fix(self) -> list[Json]:
        """Apply the repairs that can be applied, and look again."""
        answer = self._transport.json("POST", "/v1/doctor/fix", timeout_s=_BUILD_S)
        findings: list[Json] = answer["findings"]
        return findings
