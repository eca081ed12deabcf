"""An instance as one value: what is wanted and what was observed, read together."""

from __future__ import annotations

from dataclasses import dataclass

from innkeeper.spec.instance import InstanceRecord, InstanceStatus


class StatusRecord(InstanceStatus):
    """What the store keeps of a status: of which instance it is, since names are used again."""

    uid: str = ""

    @classmethod
    def of(cls, uid: str, status: InstanceStatus) -> StatusRecord:
        fields = {name: getattr(status, name) for name in InstanceStatus.model_fields}
        return cls.model_construct(**fields, uid=uid)


@dataclass(frozen=True, slots=True)
class InstanceView:
    """`revision` is the later one of the two reads: what has seen it has seen both."""

    record: InstanceRecord
    status: InstanceStatus
    revision: int

    @classmethod
    def of(
        cls, record: InstanceRecord, revision: int, status: tuple[StatusRecord, int] | None
    ) -> InstanceView:
        """Join the two; a status left by an earlier instance of the same name counts for nothing."""
        if status is None or status[0].uid != record.uid:
            return cls(record, InstanceStatus(), revision)
        return cls(record, status[0], max(revision, status[1]))

    @property
    def name(self) -> str:
        return self.record.name
