"""Ranks that the user fixed, by regular expressions on layer names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from pelacli.errors import RequestError
from pelacli.messages import did_you_mean

# A rank, "dense", or "full": factorised at min(out, in).
Pin = int | Literal["dense", "full"]


class Named(Protocol):
    """Whatever bears a layer's name: a layer, or its spectrum."""

    @property
    def name(self) -> str: ...


def pins_by_name(layers: Sequence[Named], pins: Mapping[str, Pin]) -> dict[str, Pin]:
    """Regular expression → pin, resolved to layer → pin; the last match wins.

    Raises:
        RequestError: an expression matches no layer that can be factorised.
    """
    by_name: dict[str, Pin] = {}
    for pattern, pin in pins.items():
        names = [layer.name for layer in layers if re.search(pattern, layer.name)]
        if not names:
            raise RequestError(f"pin {pattern!r}: matches no layer that is factorised")
        by_name |= dict.fromkeys(names, pin)
    return by_name


def pinned_rank(pin: Pin, shape: tuple[int, int]) -> int | None:
    """The rank that a pin gives to a layer of shape (out, in); None: dense."""
    if pin == "dense":
        return None
    return min(shape) if pin == "full" else pin


def check_pins(shapes: Mapping[str, tuple[int, int]], pins: Mapping[str, Pin]) -> None:
    """Refuse pins that fit no layer.

    Args:
        shapes: layer → (out, in).
        pins: layer → pin.

    Raises:
        RequestError: a layer that is not factorised, or a rank that it can't have.
    """
    for name, pin in pins.items():
        if name not in shapes:
            hint = did_you_mean(name, shapes, before="; ")
            raise RequestError(f"pin {name}: no such layer is factorised{hint}")
        if isinstance(pin, str):
            if pin not in ("dense", "full"):
                raise RequestError(f'pin {name}: {pin!r} is neither a rank, "dense" nor "full"')
        elif not 0 <= pin <= min(shapes[name]):
            out, in_ = shapes[name]
            raise RequestError(
                f"pin {name}: rank {pin} is not between 0 and {min(out, in_)}, "
                f"the most that its shape {out} × {in_} can have"
            )
