"""The plan as data: layer → rank, with the budget it met. JSON in and out, checked, printable."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelacli.errors import RequestError
from pelacli.ranks import reasons


def read_plan(file: Path) -> Plan:
    """A plan from a JSON file, also from a manifest's or `--dry-run --json`'s list of layers."""
    try:
        document: Any = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{file}: can't be read: {error.strerror}") from None
    except ValueError as error:
        raise RequestError(f"{file}: not valid JSON ({error})") from None
    return Plan.from_dict(document, where=str(file))


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one layer.

    Attributes:
        shape: (out, in).
        rank: None where the layer stays dense.
        reason: why it is dense; None where it is factorised.
        energy: share of the layer's energy that is kept, 0 to 1; None where unknown.
    """

    shape: tuple[int, int]
    rank: int | None
    reason: str | None = None
    energy: float | None = None


@dataclass(frozen=True)
class Plan:
    """Layer → rank, and the budget.

    Attributes:
        policy, scope, ratio: as asked for; ratio is None where there was none.
        layers: in the order of the model.
        unit: "params" or "flops": what limit, used and total count.
        limit: the budget, floor(ratio · total); used: what the plan costs; total: the dense cost.
            Of the whole model, or with scope "layers" of the planned layers alone.
        threshold: of policy "threshold".
        share: of all layers' energy together, where that was asked for in place of a ratio.
        energy: share of the planned layers' energy that is kept, 0 to 1; None where unknown.
    """

    policy: str
    scope: str
    ratio: str | None
    layers: dict[str, LayerPlan]
    unit: str = "params"
    limit: int | None = None
    used: int | None = None
    total: int | None = None
    threshold: float | None = None
    energy: float | None = None
    share: float | None = None

    def ranks(self) -> dict[str, int]:
        """Layer → rank of the layers that are factorised."""
        return {name: la.rank for name, la in self.layers.items() if la.rank is not None}

    def to_dict(self) -> dict[str, Any]:
        """The plan as a JSON document, which `from_dict` reads back."""
        document: dict[str, Any] = {
            "policy": self.policy,
            "scope": self.scope,
            "ratio": self.ratio,
            "unit": self.unit,
            "limit": self.limit,
            "used": self.used,
            "total": self.total,
            "threshold": self.threshold,
            "share": self.share,
            "energy": self.energy,
            "layers": {
                name: {
                    "shape": list(la.shape),
                    "rank": la.rank,
                    "reason": la.reason,
                    "energy": la.energy,
                }
                for name, la in self.layers.items()
            },
        }
        for key in ("threshold", "share"):
            if document[key] is None:
                del document[key]
        return document

    @classmethod
    def from_dict(cls, data: Any, where: str) -> Plan:
        """Read a plan back, also one whose ranks were edited by hand.

        ``layers`` may also be a list of entries with a ``name``, as in ``pela.json`` and in
        ``decompose --json``. Only shapes and ranks are needed. After an edit energies and costs
        are those of the old ranks until `pelacli.ranks.planner.measure` computes them anew.

        Args:
            where: the file, for error messages.

        Raises:
            RequestError: naming the file, the layer and the remedy.
        """
        if not isinstance(data, dict) or not isinstance(data.get("layers"), dict | list):
            raise RequestError(
                f'{where}: not a plan: it needs "layers", as `pela decompose --dry-run --json` '
                "prints them"
            )
        entries = data["layers"]
        if isinstance(entries, list):
            names = [e.get("name") if isinstance(e, dict) else None for e in entries]
            if not all(isinstance(name, str) for name in names):
                raise RequestError(f'{where}: every entry of the list "layers" needs a "name"')
            if twice := {str(name) for name in names if names.count(name) > 1}:
                raise RequestError(f"{where}: layer {min(twice)} is there twice; keep one")
            entries = dict(zip(names, entries, strict=True))
        ratio = data.get("ratio")
        unit = data.get("unit") or "params"
        scope = data.get("scope") or "model"
        for key, value, allowed in (
            ("unit", unit, ("params", "flops")),
            ("scope", scope, ("model", "layers")),
        ):
            if value not in allowed:
                raise RequestError(f"{where}: {key} {value!r} is neither {' nor '.join(allowed)}")
        return cls(
            policy=str(data.get("policy") or "by hand"),
            scope=scope,
            ratio=None if ratio is None else str(ratio),
            layers={name: _layer(entry, f"{where}: {name}") for name, entry in entries.items()},
            unit=unit,
            limit=_number(data, "limit", int, where),
            used=_number(data, "used", int, where),
            total=_number(data, "total", int, where),
            threshold=_number(data, "threshold", float, where),
            energy=_number(data, "energy", float, where),
            share=_number(data, "share", float, where),
        )

    def __str__(self) -> str:
        budget = "" if self.ratio is None else f", ratio {self.ratio} of the {self.scope}"
        if self.threshold is not None:
            budget += f", threshold {self.threshold:g}"
        if self.share is not None:
            budget += f", energy {self.share:g}"
        if self.used is not None and self.total:
            budget += f": {self.used:,} of {self.total:,} {self.unit}"
            budget += f" ({self.used / self.total:.4f})"
        if self.energy is not None:
            budget += f", energy kept {self.energy:.4f}"
        lines = [f"{self.policy} plan{budget}"]
        width = max((len(name) for name in self.layers), default=0)
        for name, la in self.layers.items():
            what = f"dense ({la.reason})" if la.rank is None else f"rank {la.rank}"
            kept = "" if la.rank is None or la.energy is None else f", energy {la.energy:.4f}"
            lines.append(f"  {name:{width}}  {la.shape[0]} × {la.shape[1]}  {what}{kept}")
        return "\n".join(lines)


def check(plan: Plan, shapes: Mapping[str, tuple[int, int]], where: str) -> None:
    """Whether a plan fits a model.

    Args:
        shapes: layer → (out, in) of the model's linear layers.
        where: the plan's file, for error messages.

    Raises:
        RequestError: a layer that the model has not, or of another shape, or with a rank above
            min(out, in).
    """
    for name, la in plan.layers.items():
        if name not in shapes:
            raise RequestError(
                f"{where}: {name}: the model has no such layer{nearest(name, shapes)}"
            )
        if tuple(la.shape) != tuple(shapes[name]):
            theirs, ours = (" × ".join(map(str, shape)) for shape in (la.shape, shapes[name]))
            raise RequestError(
                f"{where}: {name}: is {theirs} in the plan and {ours} in the model; "
                "use a plan that was made for this model"
            )
        _check_rank(la.rank, la.shape, f"{where}: {name}")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that ends an error message: "; did you mean …?", or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


_KEYS = ("name", "shape", "rank", "reason", "energy", "kind", "params", "flops")


def _layer(entry: Any, where: str) -> LayerPlan:
    if not isinstance(entry, dict):
        raise RequestError(f'{where}: needs "shape" and "rank", not {entry!r}')
    for key in entry:
        if key not in _KEYS:
            raise RequestError(f"{where}: unknown key {key!r}{nearest(str(key), _KEYS)}")
    for key in ("shape", "rank"):
        if key not in entry:
            raise RequestError(f'{where}: has no "{key}"')
    shape = entry["shape"]
    if not (isinstance(shape, list) and len(shape) == 2 and all(_whole(n, 1) for n in shape)):
        raise RequestError(f"{where}: shape {shape!r} is not [out, in]")
    rank = entry["rank"]
    if rank is not None and not _whole(rank, 0):
        raise RequestError(
            f"{where}: rank {rank!r} is not a whole number from 0 on, nor null for dense"
        )
    _check_rank(rank, (shape[0], shape[1]), where)
    reason = entry.get("reason")
    # A rank that was put in the place of null, or taken away, leaves the old reason behind.
    reason = None if rank is not None else str(reason) if reason else reasons.PLAN_SAYS_SO
    energy = _number(entry, "energy", float, where)
    return LayerPlan((shape[0], shape[1]), rank, reason, energy)


def _check_rank(rank: int | None, shape: tuple[int, int], where: str) -> None:
    if rank is not None and rank > min(shape):
        raise RequestError(
            f"{where}: rank {rank} is above {min(shape)}, the most that shape "
            f"{shape[0]} × {shape[1]} can have; lower it, or give null for dense"
        )


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(data: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    value = data.get(key)
    if value is None or (_whole(value, 0) or (kind is float and isinstance(value, float))):
        return value
    raise RequestError(f"{where}: {key} {value!r} is not a number; leave it out if unsure")
