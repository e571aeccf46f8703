"""Sentences that an image contradicts, leaves open or entails: SNLI-VE in ALBEF's JSON.

A list of ``{"image": Flickr30K number or path, "sentence": text, "label": text or 0, 1, 2}``; to a
name without an ending ``.jpg`` is added. A label "-", -1 or null says that the annotators did not
agree, and its entry is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelacli.data.formats import hub_rows, json_files
from pelacli.errors import RequestError

LABELS = ["contradiction", "neutral", "entailment"]
_NO_LABEL = (None, "-", -1)


@dataclass(frozen=True)
class Claim:
    """A sentence about an image, its label a number of `LABELS`, its place in words."""

    image: Any
    text: str
    label: int
    where: str


def read(spec: str, split: str, images: str | None) -> tuple[list[Claim], str | None]:
    """The claims of a split and its name; arguments as in `formats.captions.read`.

    Raises:
        RequestError: file and entry of a mistake.
    """
    if spec.startswith("hfds/"):
        wanted = {"sentence": ("sentence", "hypothesis", "text"), "label": ("label", "gold_label")}
        rows, part = hub_rows.rows(spec, split, wanted)
        claims = [_claim(fields, where, image) for image, fields, where in rows if _agreed(fields)]
        return _some(claims, spec), part
    files, name = json_files.files(spec, split)
    claims = []
    for file in files:
        for entry, where in json_files.entries(file):
            if not _agreed(entry):
                continue
            named = {**entry, "image": json_files.number(entry, "image", where)}
            path = Path(json_files.image(named, where, images))
            claims.append(_claim(entry, where, str(path if path.suffix else f"{path}.jpg")))
    return _some(claims, str(files[0])), name


def _some(claims: list[Claim], where: str) -> list[Claim]:
    if not claims:
        raise RequestError(f"{where}: no entries with a label; give one of {', '.join(LABELS)}")
    return claims


def _agreed(entry: dict[str, Any]) -> bool:
    """Whether an entry has a label; one without the field is a mistake, and is told as such."""
    return "label" not in entry or entry["label"] not in _NO_LABEL


def _claim(entry: dict[str, Any], where: str, image: Any) -> Claim:
    label = entry.get("label")
    if isinstance(label, str) and label.strip().casefold() in LABELS:
        label = LABELS.index(label.strip().casefold())
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(LABELS):
        raise RequestError(f"{where}: label {label!r} is none of {', '.join(LABELS)}")
    return Claim(image, json_files.text(entry, "sentence", where), label, where)
