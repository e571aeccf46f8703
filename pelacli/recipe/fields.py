"""What a recipe's values may be: ratios, patterns, ranks, paths. No torch."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    WithJsonSchema,
)

from pelacli.messages import shown
from pelacli.ranks import ratio as ratios
from pelacli.system import precisions


class SectionError(ValueError):
    """The keys of a section don't go together.

    Args:
        keys: dotted, relative to the section; the first is the one to change.
    """

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = [tuple(key.split(".")) for key in keys]


def _check_ratio(value: Any) -> str:
    ratios.parse(str(value).lower() if isinstance(value, bool) else value)
    return str(value)


def _check_pattern(value: str) -> str:
    if not value:
        raise ValueError("is empty, and would match every name")
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{shown(value)} is no regular expression ({error})") from None
    return value


def _check_pin(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not whole and value not in ("dense", "full"):
        raise ValueError(f"{shown(value)} is no rank; give a whole number, 'dense' or 'full'")
    return value


def _check_argument(value: Any) -> Any:
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, bool | int | float | str):
            raise ValueError("expected a number, text, true or false, or a list of these")
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError("expected a finite number")
    return value


def _check_device(value: str) -> str:
    if not value.isalpha():
        raise ValueError(
            f"{value!r} is no kind of device; give 'auto', 'cpu', 'cuda' or 'mps' "
            "(which GPU: CUDA_VISIBLE_DEVICES)"
        )
    return value


def _check_name(value: Any) -> Any:
    """A name of a file, a model or a dataset, with "~" at its start spelt out."""
    if value == "":
        raise ValueError("is empty")
    if not isinstance(value, str):
        return value
    if "\0" in value:
        raise ValueError("holds a NUL character, which no name can have; take it out")
    expanded = os.path.expanduser(value)
    if expanded.startswith("~"):
        raise ValueError(f"{value!r}: there is no such home directory; './~…' is a name with a ~")
    return expanded


def _without_fraction(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def _check_pair(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("expected two numbers, as [0.5, 1.0]")
    return value


def _check_range(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"{list(value)} is no range; the smaller number comes first")
    return value


Text = Annotated[str, BeforeValidator(_check_name)]
Device = Annotated[str, AfterValidator(_check_device)]
Pattern = Annotated[str, AfterValidator(_check_pattern)]
Precision = Annotated[Literal["fp32", "bf16", "fp16"], BeforeValidator(precisions.canonical)]
Scalar = bool | int | float | str
Argument = Annotated[Scalar | list[Scalar], BeforeValidator(_check_argument)]
Pin = Annotated[Annotated[int, Field(ge=0)] | Literal["dense", "full"], BeforeValidator(_check_pin)]
Ratio = Annotated[
    Annotated[str, BeforeValidator(_check_ratio)] | None,
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "null"}]}),
]
# Files have lists for tuples and text for paths, hence not strict.
FilePath = Annotated[Path, Strict(False), BeforeValidator(_check_name)]
Positive = Annotated[float, Field(gt=0)]
# A whole number stays one, so that what is recorded of it stays the same.
Epochs = Annotated[
    Positive, AfterValidator(_without_fraction), PlainSerializer(_without_fraction, int | float)
]
Beta = Annotated[float, Field(ge=0, lt=1)]
_PAIR = (Strict(False), BeforeValidator(_check_pair))
Range = Annotated[tuple[Positive, Positive], *_PAIR, AfterValidator(_check_range)]
Betas = Annotated[tuple[Beta, Beta], *_PAIR]


class Section(BaseModel):
    """A table of a recipe: no unknown keys, no conversions ("5" is not a number), no changes.

    Numbers are finite, as the JSON that stores them has no others.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False
    )
