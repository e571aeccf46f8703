"""The licence of a model's weights, as whoever published them states it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pelacli.system.own_files import is_inside

CARD = "README.md"

# What a model card's metadata says of the licence: a known name, and of one without a known name
# ("other") what it is called and where it can be read.
_KEYS = ("license", "license_name", "license_link")


def of_card(folder: Path) -> dict[str, str]:
    """What the model card of a directory says of the licence, by the metadata's own keys; empty
    where there is no card, or where it says nothing that can be read."""
    from huggingface_hub import metadata_load

    card = folder / CARD
    if not card.is_file() or not is_inside(folder, card):
        return {}
    try:
        metadata = metadata_load(card)
    except Exception:  # somebody's text: it may be no YAML, or in no encoding
        return {}
    return _licence(metadata)


def of_timm(pretrained_cfg: Any) -> dict[str, str]:
    """What timm's record of pretrained weights says of the licence; empty where it says nothing."""
    return _licence(pretrained_cfg)


def _licence(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict):
        return {}
    stated = {key: metadata.get(key) for key in _KEYS}
    return {key: value for key, value in stated.items() if isinstance(value, str) and value}
