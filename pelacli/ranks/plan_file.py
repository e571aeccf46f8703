"""Plans from JSON, also edited by hand: checked in themselves, and against the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pelacli.errors import RequestError
from pelacli.messages import did_you_mean, shown
from pelacli.ranks import reasons
from pelacli.ranks.budget import SCOPES, UNITS
from pelacli.ranks.forms import FORMS, Form
from pelacli.ranks.plan import LayerPlan, Plan
from pelacli.system import json_files


def read(file: Path) -> Plan:
    """The plan of a JSON file, also of ``pela.json`` and of what ``decompose --json`` prints.

    Raises:
        RequestError: the file can't be read, or is no plan.
    """
    remedy = "`pela decompose --dry-run --json` prints a plan"
    return from_document(json_files.read(Path(file), remedy, pipes=True), str(file))


def from_document(document: Any, where: str) -> Plan:
    """The plan of a JSON document, also one whose ranks were edited by hand.

    Its ``layers`` may also be a list of entries with a ``name``, as in ``pela.json`` and in
    ``decompose --json``. Only shapes and ranks are needed. After an edit energies and costs
    are those of the old ranks until `pelacli.ranks.planner.measure` computes them anew.

    Args:
        where: the file, for error messages.

    Raises:
        RequestError: naming the file, the layer and the remedy.
    """
    entries = _entries(document, where)
    unit = _one_of(UNITS, document.get("unit") or "params", "unit", where)
    scope = _one_of(SCOPES, document.get("scope") or "model", "scope", where)
    ratio, asked = document.get("ratio"), document.get("asked")
    return Plan(
        policy=str(document.get("policy") or "by hand"),
        scope=scope,
        ratio=None if ratio is None else str(ratio),
        layers={name: _layer(entry, f"{where}: {name}") for name, entry in entries.items()},
        unit=unit,
        limit=_number(document, "limit", int, where),
        used=_number(document, "used", int, where),
        total=_number(document, "total", int, where),
        threshold=_number(document, "threshold", float, where),
        energy=_number(document, "energy", float, where),
        share=_number(document, "share", float, where),
        asked=None if asked is None else str(asked),
    )


def check(plan: Plan, shapes: Mapping[str, tuple[int, int]], where: str) -> None:
    """Refuse a plan that does not fit a model.

    Args:
        shapes: layer → (out, in) of the model's linear layers.
        where: the plan's file, for error messages.

    Raises:
        RequestError: a layer that the model does not have, or of another shape, or with a rank
            above min(out, in).
    """
    for name, layer in plan.layers.items():
        if name not in shapes:
            hint = did_you_mean(name, shapes, before="; ")
            raise RequestError(f"{where}: {name}: the model has no such layer{hint}")
        if tuple(layer.shape) != tuple(shapes[name]):
            theirs, ours = (" × ".join(map(str, shape)) for shape in (layer.shape, shapes[name]))
            raise RequestError(
                f"{where}: {name}: is {theirs} in the plan and {ours} in the model; "
                "use a plan that was made for this model"
            )
        _check_rank(layer.rank, layer.shape, f"{where}: {name}")


_Name = TypeVar("_Name", bound=str)

# Keys that a layer's entry may have; those of a manifest's are among them.
_KEYS = (
    "name", "shape", "rank", "reason", "energy", "form", "kind", "params", "flops",
    "held_back_error",
)  # fmt: skip


def _entries(data: Any, where: str) -> dict[str, Any]:
    """The entries of the layers by name, from a table or from a list of entries with a name."""
    if not isinstance(data, dict) or not isinstance(data.get("layers"), dict | list):
        raise RequestError(
            f'{where}: not a plan: it needs "layers", as `pela decompose --dry-run --json` '
            "prints them"
        )
    entries: dict[str, Any] | list[Any] = data["layers"]
    if isinstance(entries, dict):
        return entries
    names = [
        entry["name"]
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("name"), str)
    ]
    if len(names) < len(entries):
        raise RequestError(f'{where}: every entry of the list "layers" needs a "name"')
    by_name = dict(zip(names, entries, strict=True))
    if len(by_name) < len(names):
        twice = min(name for name, count in Counter(names).items() if count > 1)
        raise RequestError(f"{where}: layer {twice} is there twice; keep one")
    return by_name


def _layer(entry: Any, where: str) -> LayerPlan:
    if not isinstance(entry, dict):
        raise RequestError(f'{where}: needs "shape" and "rank", not {shown(entry)}')
    for key in entry:
        if key not in _KEYS:
            hint = did_you_mean(str(key), _KEYS, before="; ")
            raise RequestError(f"{where}: unknown key {shown(key)}{hint}")
    for key in ("shape", "rank"):
        if key not in entry:
            raise RequestError(f'{where}: has no "{key}"')
    shape = entry["shape"]
    if not (isinstance(shape, list) and len(shape) == 2 and all(_whole(n, 1) for n in shape)):
        raise RequestError(f"{where}: shape {shown(shape)} is not [out, in]")
    rank = entry["rank"]
    if rank is not None and not _whole(rank, 0):
        raise RequestError(
            f"{where}: rank {shown(rank)} is not a whole number from 0 on, nor null for dense"
        )
    _check_rank(rank, (shape[0], shape[1]), where)
    reason = entry.get("reason")
    # A rank that was put in the place of null, or taken away, leaves the old reason behind.
    reason = None if rank is not None else str(reason) if reason else reasons.PLAN_SAYS_SO
    energy = _number(entry, "energy", float, where)
    form: Form | None = None
    if (
        rank is not None and entry.get("form") is not None
    ):  # one that is left of a dense layer says nothing
        form = _one_of(FORMS, entry["form"], "form", where)
    return LayerPlan((shape[0], shape[1]), rank, reason, energy, form)


def _check_rank(rank: int | None, shape: tuple[int, int], where: str) -> None:
    if rank is not None and rank > min(shape):
        raise RequestError(
            f"{where}: rank {rank} is above {min(shape)}, the most that shape "
            f"{shape[0]} × {shape[1]} can have; lower it, or give null for dense"
        )


def _one_of(known: tuple[_Name, ...], value: Any, key: str, where: str) -> _Name:
    for name in known:
        if name == value:
            return name
    raise RequestError(f"{where}: {key} {shown(value)} is neither {' nor '.join(known)}")


def _whole(value: Any, least: int) -> bool:
    """Whether a value is a whole number from ``least`` on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(data: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    value = data.get(key)
    if value is None or (_whole(value, 0) or (kind is float and isinstance(value, float))):
        return value
    raise RequestError(f"{where}: {key} {shown(value)} is not a number; leave it out if unsure")
