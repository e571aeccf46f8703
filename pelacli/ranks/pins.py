"""Ranks that the user fixed, by regular expressions on layer names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from pelacli.errors import RequestError
from pelacli.ranks.plan import nearest


class Named(Protocol):
    """Whatever bears a layer's name: a layer, or its spectrum."""

    @property
    def name(self) -> str: ...


def pins_by_name(layers: Sequence[Named], pins: Mapping[str, Pin]) -> dict[str, Pin]:
    """Regular expression → rank, resolved to layer → rank; the last match wins.

    Raises:
        RequestError: an expression matches no layer that can be factorised.
    """
    found: dict[str, Pin] = {}
    for pattern, rank in pins.items():
        names = [layer.name for layer in layers if re.search(pattern, layer.name)]
        if not names:
            raise RequestError(f"pin {pattern!r}: matches no layer that is factorised")
        found |= dict.fromkeys(names, rank)
    return found


Pin = int | Literal["dense", "full"]


def check_pins(shapes: Mapping[str, tuple[int, int]], pins: Mapping[str, int | str]) -> None:
    """Refuse pins that fit no layer.

    Args:
        shapes: layer → (out, in).
    """
    for name, pin in pins.items():
        if name not in shapes:
            raise RequestError(f"pin {name}: no such layer is factorised{nearest(name, shapes)}")
        if isinstance(pin, str):
            if pin not in ("dense", "full"):
                raise RequestError(f'pin {name}: {pin!r} is neither a rank, "dense" nor "full"')
        elif not 0 <= pin <= min(shapes[name]):
            out, in_ = shapes[name]
            raise RequestError(
                f"pin {name}: rank {pin} is not between 0 and {min(out, in_)}, "
                f"the most that its shape {out} × {in_} can have"
            )
