"""Times of layers on disk, in the user's cache directory: what was measured once on a device under
the same conditions is not measured again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from pelacli.console import warn_once
from pelacli.measure import layer_times
from pelacli.measure.latency import DTYPES
from pelacli.measure.layer_times import Case, LayerTimes
from pelacli.report.latencies import Conditions
from pelacli.system import files

# Raised when layers are run, or timed, in another way than before.
_FORMAT = 1

# As `pelacli.measure.layer_times.measure` is called, without a clock.
Measure = Callable[..., LayerTimes]


class _Stored(BaseModel):
    """The content of a file. The key is in it whole, as the file's name has its digest only."""

    model_config = ConfigDict(strict=True, extra="forbid")
    key: dict[str, Any]
    dense: PositiveInt
    forms: dict[str, dict[str, PositiveInt]]


def times(
    cases: Sequence[Case],
    forms: Sequence[str],
    conditions: Conditions,
    *,
    measure: Measure | None = None,
    advance: Callable[[], object] = lambda: None,
) -> dict[Case, LayerTimes]:
    """Times of layers in these forms: those on disk, and the others measured and put there.

    Args:
        advance: is called after each case.

    Raises:
        RuntimeError: as torch raises it, where the device can't run a layer in this precision.
    """
    result: dict[Case, LayerTimes] = {}
    for case in dict.fromkeys(cases):
        key = _key(case, conditions)
        known = _load(key, case, forms)
        if known is None:
            known = (measure or layer_times.measure)(
                case,
                forms,
                torch.device(conditions.device),
                DTYPES[conditions.precision],
                compile=conditions.compile,
            )
            _save(key, known)
        result[case] = known
        advance()
    return result


def folder() -> Path | None:
    """Where the files are; None for a user without a home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # the specification has relative ones passed over
        return Path(given) / "pela" / "latency"
    try:
        return Path.home() / ".cache" / "pela" / "latency"
    except RuntimeError:
        return None


def _key(case: Case, conditions: Conditions) -> dict[str, Any]:
    """All that a time depends on."""
    return {
        "format": _FORMAT,
        "torch": torch.__version__,
        "float32_products": torch.get_float32_matmul_precision(),
        **conditions.document(),
        **asdict(case),
    }


def _file(key: dict[str, Any]) -> Path | None:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    cache = folder()
    name = f"{key['device']}-{key['out']}x{key['in_']}-{key['tokens']}-{digest}.json"
    return None if cache is None else cache / name


def _load(key: dict[str, Any], case: Case, forms: Sequence[str]) -> LayerTimes | None:
    """What a file says; None where it is missing, damaged, of other conditions, or without one of
    the forms."""
    file = _file(key)
    try:
        if file is None:
            return None
        stored = _Stored.model_validate_json(file.read_bytes())
        tables = {form: {int(r): ns for r, ns in stored.forms[form].items()} for form in forms}
    except (OSError, ValidationError, KeyError, ValueError):
        return None
    wanted = {form: set(layer_times.ranks_to_time(case, form)) for form in forms}
    if stored.key != key or {form: set(table) for form, table in tables.items()} != wanted:
        return None
    return LayerTimes(stored.dense, tables)


def _save(key: dict[str, Any], known: LayerTimes) -> None:
    """Keep what was measured; a disk that refuses is said, and nothing is lost but time."""
    file = _file(key)
    if file is None:
        return
    forms = {form: {str(r): ns for r, ns in table.items()} for form, table in known.forms.items()}
    text = json.dumps({"key": key, "dense": known.dense, "forms": forms}, indent=1) + "\n"
    try:
        files.write(file, text.encode())
    except OSError as error:
        warn_once(
            "latency cache",
            f"{file.parent}: {error.strerror}; what was measured is measured again next time",
        )
