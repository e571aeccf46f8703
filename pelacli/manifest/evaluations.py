"""What `pela eval` measured of an artefact: evaluations.jsonl beside its manifest, a line for each.

A line belongs to the model that was measured: it holds the digest of the manifest of that time, and
is left out once the artefact has been made anew. So the weights need not be read to know it.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pelacli.errors import RequestError
from pelacli.manifest import digests, document
from pelacli.system import own_files

FILE = "evaluations.jsonl"


class Timed(BaseModel):
    """What a latency holds for.

    Attributes:
        batch_size: samples of a batch.
        device: its kind, as in recipes; model: its maker's name of it.
        threads: of the CPU.
    """

    model_config = ConfigDict(extra="ignore")

    batch_size: int
    device: str
    model: str
    threads: int


class EvaluationRecord(BaseModel):
    """One measurement.

    Attributes:
        time: when it was made, in UTC, as ISO 8601 has it.
        manifest: SHA-256 of the artefact's pela.json.
        data, split: what it was measured on, as the user named it; None: size and latency only.
        task, main_metric: what it was judged by; None without labels.
        metrics, latency_ms, baseline, agreement, drop, drop_of, max_drop: as in ``eval --json``.
        timed: what the latency holds for; None where it was not timed.
    """

    model_config = ConfigDict(extra="ignore")

    time: str = ""
    manifest: str = ""
    data: str | None = None
    split: str | None = None
    task: str | None = None
    main_metric: str | None = None
    metrics: dict[str, float | None] = Field(default_factory=dict)
    latency_ms: float | None = None
    timed: Timed | None = None
    baseline: dict[str, Any] | None = None
    agreement: dict[str, float | None] | None = None
    drop: float | None = None
    drop_of: str | None = None
    max_drop: float | None = None

    @property
    def passed(self) -> bool | None:
        """Whether the drop is one that was allowed; None where nothing was said of it."""
        if self.max_drop is None:
            return None
        return self.drop is not None and self.drop <= self.max_drop  # NaN does not pass


def append(directory: Path, record: EvaluationRecord) -> None:
    """Write a line at the end of the artefact's file.

    Raises:
        OSError: the artefact can't be written to. What was there is as it was.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    digest = digests.digest_file(directory / document.FILE)
    line = record.model_copy(update={"time": now, "manifest": digest}).model_dump_json() + "\n"
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    file = os.open(directory / FILE, flags, 0o666)
    try:
        os.write(file, line.encode())  # in one piece: others may be writing too
    finally:
        os.close(file)


def read(directory: Path) -> list[EvaluationRecord]:
    """What was measured of the artefact as it is now, the latest last. Lines that can't be read, as
    one that was cut short, are left out."""
    try:
        own_files.check(directory, directory / FILE)
        lines = (directory / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
        digest = digests.digest_file(directory / document.FILE)
    except (OSError, RequestError):
        return []
    records = []
    for line in lines:
        try:
            record = EvaluationRecord.model_validate_json(line)
        except ValidationError:
            continue
        if record.manifest == digest:
            records.append(record)
    return records
