"""How fast models are, as rows: each beside its dense original, at several batch sizes; and in a
line what to do where low rank is slower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pelacli.errors import RequestError
from pelacli.manifest.document import Manifest
from pelacli.report.tables import UNKNOWN, Row, human
from pelacli.system import precisions
from pelacli.system.turns import Timing


@dataclass(frozen=True)
class TimingRequest:
    """How models are to be timed.

    Attributes:
        device: as in recipes.
        precision: one of `pelacli.system.precisions.NAMES`; None: what most of the model's
            weights are stored in.
        compile: with torch.compile.
    """

    device: str = "auto"
    batch_sizes: Sequence[int] = (1, 8, 32)
    precision: str | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in (None, *precisions.NAMES):
            raise RequestError(f"--precision {self.precision}: give fp32, bf16 or fp16")

    @classmethod
    def parse(
        cls,
        *,
        device: str | None,
        batch_sizes: str | None,
        precision: str | None,
        compile: bool,
    ) -> TimingRequest:
        """The request of a command line; None was not given.

        Raises:
            RequestError: batch sizes that are no numbers, or a precision that there is not.
        """
        sizes = cls.batch_sizes if batch_sizes is None else _numbers(batch_sizes)
        return cls(device or cls.device, sizes, precisions.canonical(precision), compile)


def _numbers(text: str) -> list[int]:
    """ "1,8,32" → [1, 8, 32], each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() and 0 < int(part) < 10**9 for part in parts):
        raise RequestError(f"--batch-size {text}: give numbers from 1 on, as in 1,8,32")
    return list(dict.fromkeys(map(int, parts)))


@dataclass(frozen=True)
class Conditions:
    """What models are timed on and how.

    Attributes:
        device: its kind, as in recipes; model: its maker's name of it.
        threads: of the CPU.
        precision: "fp32", "bf16" or "fp16": of the weights and of the inputs.
        compile: whether torch compiles the models.
    """

    device: str
    model: str
    threads: int
    precision: str
    compile: bool

    def __str__(self) -> str:
        compiled = ", compiled" if self.compile else ""
        return f"on {self.device} in {self.precision}{compiled}"

    def document(self) -> dict[str, Any]:
        """What JSON and CSV say of it."""
        return {
            "device": self.device,
            "device_name": self.model,
            "threads": self.threads,
            "precision": self.precision,
            "compile": self.compile,
        }


@dataclass(frozen=True)
class Speed:
    """One forward pass of a batch.

    Attributes:
        own: of the model.
        dense: of its dense original, which took turns with it; None of a model that is dense.
        peak, dense_peak: bytes of memory, weights included; None where the device does not tell.
    """

    batch_size: int
    own: Timing
    dense: Timing | None = None
    peak: int | None = None
    dense_peak: int | None = None

    @property
    def speedup(self) -> float | None:
        """How many times as fast as its dense original; None of a model that is dense."""
        return None if self.dense is None else self.dense.median / self.own.median

    @property
    def is_unsure(self) -> bool:
        """Whether the middle halves of both times overlap, so that chance may have decided."""
        dense = self.dense
        return dense is not None and max(dense.lower, self.own.lower) <= min(
            dense.upper, self.own.upper
        )


@dataclass(frozen=True)
class Speeds:
    """One model at several batch sizes."""

    conditions: Conditions
    batches: Sequence[Speed]


def exact_rows(models: Mapping[str, Speeds]) -> list[Row]:
    """One row per model and batch size: milliseconds, bytes, None where unknown."""
    return [{"model": label, **row} for label, speeds in models.items() for row in document(speeds)]


def document(speeds: Speeds) -> list[Row]:
    """The key ``latency`` of a model in ``pela report --json``."""
    return [
        {
            "batch_size": speed.batch_size,
            **speeds.conditions.document(),
            **_milliseconds("", speed.own),
            **_milliseconds("dense_", speed.dense),
            "speedup": speed.speedup,
            "peak_bytes": speed.peak,
            "dense_peak_bytes": speed.dense_peak,
        }
        for speed in speeds.batches
    ]


def human_rows(models: Mapping[str, Speeds]) -> list[Row]:
    """The same for human eyes: medians, and the middle half of the times in brackets. The column
    "model" is left out where there is only one."""
    rows = [(label, speed) for label, speeds in models.items() for speed in speeds.batches]
    dense = any(speed.dense is not None for _, speed in rows)
    memory = any(speed.peak is not None for _, speed in rows)
    mixed = len({speeds.conditions for speeds in models.values()}) > 1
    return [
        ({"model": label} if len(models) > 1 else {})
        | ({"precision": models[label].conditions.precision} if mixed else {})
        | {"batch": speed.batch_size, "ms": _spread(speed.own)}
        | ({"dense ms": _spread(speed.dense), "speed": _times(speed)} if dense else {})
        | ({"memory": _bytes(speed.peak)} if memory else {})
        | ({"dense memory": _bytes(speed.dense_peak)} if memory and dense else {})
        for label, speed in rows
    ]


def title(models: Mapping[str, Speeds]) -> str:
    """What stands above the rows; the precision too where all models have one."""
    conditions = [speeds.conditions for speeds in models.values()]
    first = conditions[0]
    how = str(first) if len(set(conditions)) == 1 else f"on {first.device}"
    return f"milliseconds of a batch {how} ({first.model})"


def slower_than_dense(label: str, speeds: Speeds, manifest: Manifest) -> str | None:
    """The line that says where low rank is slower than dense, and what to do; None where it is
    nowhere slower."""
    slow = [s for s in speeds.batches if s.speedup is not None and s.speedup < 1]
    if not slow:
        return None
    unsure = " (within the spread)" if all(speed.is_unsure for speed in slow) else ""
    where = ", ".join(f"{s.batch_size} ({s.speedup:.2f} × its speed)" for s in slow)
    return (
        f"{label}: slower than dense at batch size {where} {speeds.conditions}{unsure}; "
        + _listed(_remedies(speeds, manifest))
    )


def _remedies(speeds: Speeds, manifest: Manifest) -> list[str]:
    """What may help, of what has not been tried here."""
    largest = max(speeds.batches, key=lambda speed: speed.batch_size)
    remedies = ["try a larger batch"]
    if largest.speedup is not None and largest.speedup > 1:
        remedies = [f"batches of {largest.batch_size} are {largest.speedup:.2f} × as fast as dense"]
    if not speeds.conditions.compile:
        remedies.append("time it with --compile")
    if manifest.unit != "latency":
        remedies.append("decompose by time (--unit latency)")
    if any(layer.form == "pivots" for layer in manifest.layers):
        remedies.append("decompose with --form factors")
    multiple = 8 if speeds.conditions.device == "cpu" else 32
    ranks = [layer.rank for layer in manifest.layers if layer.rank is not None]
    if any(rank % multiple for rank in ranks):
        remedies.append(f"decompose with --multiple {multiple}")
    return remedies


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


def _milliseconds(prefix: str, timing: Timing | None) -> Row:
    parts = ("median", "lower", "upper")
    return {f"{prefix}{part}_ms": timing and getattr(timing, part) for part in parts}


def _spread(timing: Timing | None) -> str:
    if timing is None:
        return UNKNOWN
    return f"{timing.median:.4g} ({timing.lower:.4g}–{timing.upper:.4g})"


def _times(speed: Speed) -> str:
    return UNKNOWN if speed.speedup is None else f"{speed.speedup:.2f} × dense"


def _bytes(count: int | None) -> str:
    return UNKNOWN if count is None else f"{human(count)}B"
