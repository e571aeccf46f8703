"""One model that a report is about, with all that is recorded of it. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pelacli.manifest.document import Manifest
from pelacli.manifest.evaluations import EvaluationRecord
from pelacli.planning.stored import Spectra
from pelacli.report.curves import Course
from pelacli.report.latencies import Speeds
from pelacli.report.tables import UNKNOWN

MEGA = 1_000_000


@dataclass(frozen=True)
class Subject:
    """One model of a report.

    Attributes:
        label: what the user calls it.
        place: where its files lie.
        bytes: of its weights as they are stored; None where unknown.
        evaluations: what `pela eval` measured of it, the latest last.
        course: of its last training.
        spectra: what its ranks were planned from, where they are kept.
        speeds: where the report was asked to time it.
    """

    label: str
    manifest: Manifest
    bytes: int | None = None
    evaluations: Sequence[EvaluationRecord] = field(default_factory=list)
    course: Course | None = None
    spectra: Spectra | None = None
    speeds: Speeds | None = None
    place: Path | None = None

    @property
    def original(self) -> tuple[str, str | None, int]:
        """What tells its dense model from others, of which some may have the same name."""
        source = self.manifest.source
        return source.model, source.digest, self.manifest.params.before

    @property
    def dense_bytes(self) -> int | None:
        """Of the dense model: what `pela eval` found where it compared the two, else what it would
        take in the same precision."""
        params = self.manifest.params.before
        for record in reversed(self.evaluations):
            baseline = record.baseline or {}
            size = baseline.get("bytes")
            if baseline.get("params") == params and isinstance(size, int) and size > 0:
                return size
        return self.bytes_of(params)

    @property
    def is_dense(self) -> bool:
        """Whether nothing of it is factorised."""
        return all(layer.rank is None for layer in self.manifest.layers)

    @property
    def latest(self) -> EvaluationRecord | None:
        """The last evaluation that says how good it is, or else the last of all."""
        telling = [e for e in self.evaluations if e.metrics or e.agreement]
        return next(reversed(telling or [*self.evaluations]), None)

    def bytes_of(self, params: int) -> int | None:
        """What so many parameters of this model take; None where its own size is unknown."""
        own = self.manifest.params.after
        return None if self.bytes is None or not own else round(self.bytes * params / own)


def megabytes(count: int | None) -> str:
    """Bytes for people: "22.1 MB", "0.81 MB", "1,843 MB"; three digits of what is below 1,000."""
    if count is None:
        return UNKNOWN
    size = count / MEGA
    if float(f"{size:.3g}") >= 1000:
        return f"{size:,.0f} MB"
    return f"{f'{size:#.3g}'.rstrip('.')} MB" if size >= 0.01 else f"{size:.2g} MB"
