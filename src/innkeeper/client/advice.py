"""Advice on an instance, as methods of its handle. Keys of the answers: docs/reference/api.md."""

from __future__ import annotations

from typing import Any

from innkeeper.client.handle import Handle
from innkeeper.client.transport import Transport, verb_deadline

Json = dict[str, Any]


class Advised(Handle):
    def advice(self, *, window_s: float | None = None, min_data_s: float | None = None) -> Json:
        """What would pay: `advice`, each with what, evidence, effect and command; what is `withheld` and
        why; `trials`, what was applied and became of it. Looks back `window_s` seconds (a day)."""
        query = {"window_s": window_s, "min_data_s": min_data_s}
        answer: Json = self._transport.json("GET", f"{self._path}/advice", query=query)
        return answer

    def apply_advice(
        self,
        *,
        kind: str | None = None,
        window_s: float | None = None,
        min_data_s: float | None = None,
        watch_s: float | None = None,
    ) -> Json:
        """Apply the most urgent advice that can take effect now, if there is any; the daemon watches it for
        `watch_s` seconds and takes it back if it was worse. The answer is that of `advice`; the trial is the
        last of `trials`."""
        fields = {"kind": kind, "window_s": window_s, "min_data_s": min_data_s, "watch_s": watch_s}
        body = {name: value for name, value in fields.items() if value is not None}
        answer: Json = self._transport.json(
            "POST", f"{self._path}/advice", body=body, timeout_s=verb_deadline(None)
        )
        return answer


def report(transport: Transport, window_s: float | None, min_data_s: float | None) -> Json:
    """Of all instances that run."""
    query = {"window_s": window_s, "min_data_s": min_data_s}
    answer: Json = transport.json("GET", "/v1/advice", query=query, timeout_s=verb_deadline(None))
    return answer
