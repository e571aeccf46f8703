"""Sentences that an image contradicts, leaves open or entails: SNLI-VE in ALBEF's JSON.

A list of ``{"image": Flickr30K number or path, "sentence": text, "label": text or 0, 1, 2}``; to a
name without an ending ``.jpg`` is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelacli.errors import RequestError
from pelacli.formats import hub, json_files

LABELS = ["contradiction", "neutral", "entailment"]


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
        rows, part = hub.rows(spec, split, wanted)
        return [_claim(fields, where, image) for image, fields, where in rows], part
    files, name = json_files.files(spec, split)
    found = []
    for file in files:
        for entry, where in json_files.entries(file):
            named = {**entry, "image": json_files.number(entry, "image", where)}
            path = Path(json_files.image(named, where, images))
            found.append(_claim(entry, where, str(path if path.suffix else f"{path}.jpg")))
    if not found:
        raise RequestError(f"{files[0]}: no entries")
    return found, name


def _claim(entry: dict[str, Any], where: str, image: Any) -> Claim:
    label = entry.get("label")
    if label in LABELS:
        label = LABELS.index(str(label))
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(LABELS):
        raise RequestError(f"{where}: label {label!r} is none of {', '.join(LABELS)}")
    return Claim(image, json_files.text(entry, "sentence", where), label, where)
