"""The rank and the held-back error of each layer across the depth of the model: a small plot for
each kind of layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pelacli.manifest.document import LayerRecord, Manifest
from pelacli.report.costs import kind_of
from pelacli.report.page.figure import Gallery
from pelacli.report.page.scales import Scale, around, label
from pelacli.report.page.svg import Plot

SIZE = (300, 170)
SINGLE = "layers that come once"
_STYLES = {"factors": "bar s0", "pivots": "bar s1", None: "bar dense-bar"}
_NAMES = {"factors": "factors", "pivots": "pivots", None: "dense"}


def kinds(layers: Sequence[LayerRecord]) -> dict[str, list[LayerRecord]]:
    """Kind → its layers in order of depth; those that come once are together, last."""
    groups: dict[str, list[LayerRecord]] = {}
    for layer in layers:
        groups.setdefault(kind_of(layer.name), []).append(layer)
    several = {kind: members for kind, members in groups.items() if len(members) > 1}
    single = [members[0] for members in groups.values() if len(members) == 1]
    return several | ({SINGLE: single} if single else {})


def number_of(layer: LayerRecord, position: int, kind: str) -> str:
    """A layer's number in its kind: "3" of ``blocks.3.mlp.fc1``, "1.3" of ``layers.1.blocks.3``."""
    numbers = re.findall(r"(?<![^.])\d+(?![^.])", layer.name)
    return str(position) if kind == SINGLE or not numbers else ".".join(numbers)


def gallery(manifest: Manifest) -> Gallery:
    """The ranks of all layers, as shares of the full rank."""
    groups = kinds(manifest.layers)
    if all(layer.rank is None for layer in groups.get(SINGLE, [])):
        groups.pop(SINGLE, None)  # usually the output head, which nobody factorises
    axis = Axis("rank", _share, 1.0, [(v, f"{v:.0%}") for v in (0, 0.5, 1)])
    return Gallery(
        title="Ranks and forms across depth",
        caption="Each bar is a layer, from the input on the left to the output on the right: its "
        "rank as a share of the full rank. A dense layer has all of it. Point at a bar for its "
        "figures.",
        plots=[(kind, _draw(kind, layers, axis)) for kind, layers in groups.items()],
        key=_key(manifest),
    )


def errors(manifest: Manifest) -> Gallery:
    """The errors of the layers' outputs on held-back samples, where they are known."""
    known = [layer for layer in manifest.layers if layer.held_back_error is not None]
    largest = max(layer.held_back_error or 0.0 for layer in known)
    scale = around([0.0, largest], 0, 1, zero=True)
    axis = Axis("error", _error, scale.high, [(v, label(v)) for v in scale.ticks(4)])
    return Gallery(
        title="Held-back error across depth",
        caption="How far each layer's output is from the dense model's on calibration samples that "
        "nothing was fitted to, as a share of that output's variance: 0 is the dense layer, and at "
        "1 its mean output would do as well. It holds what the layers before it have lost too. A "
        "layer that adds to a residual stream also pays back their losses, so its own output may "
        "move further, even past 1, while the stream comes nearer. Measured when the model was "
        "factorised, before any training.",
        plots=[(kind, _draw(kind, layers, axis)) for kind, layers in kinds(known).items()],
        key=_key(manifest),
    )


@dataclass(frozen=True)
class Axis:
    """What the bars count.

    Attributes:
        value: a layer's bar.
        high: the top of the axis, the same for all kinds of layers; ticks: (value, text).
    """

    name: str
    value: Callable[[LayerRecord], float]
    high: float
    ticks: Sequence[tuple[float, str]]


def _share(layer: LayerRecord) -> float:
    return 1.0 if layer.rank is None else layer.rank / max(1, min(layer.shape))


def _error(layer: LayerRecord) -> float:
    return layer.held_back_error or 0.0


def _key(manifest: Manifest) -> list[tuple[str, str]]:
    forms = {layer.form for layer in manifest.layers}
    return [(_STYLES[form], _NAMES[form]) for form in _STYLES if form in forms]


def _draw(kind: str, layers: Sequence[LayerRecord], axis: Axis) -> Markup:
    detail = "; ".join(map(hint, layers))
    plot = Plot(SIZE, kind, detail, "layer", axis.name)
    left, top, right, bottom = plot.frame
    plot.x = Scale(0, len(layers), left, right)
    plot.y = Scale(0, axis.high, bottom, top)
    numbers = [number_of(layer, n, kind) for n, layer in enumerate(layers, 1)]
    longest = max(map(len, numbers))
    every = -(-len(layers) // max(1, int((right - left) / (7 * longest + 10))))
    ticks = [(n + 0.5, text) for n, text in enumerate(numbers) if n % every == 0]
    plot.axes(ticks, axis.ticks)
    width = (right - left) / len(layers)
    gap = min(2.0, width / 4)
    for n, layer in enumerate(layers):
        at, style = plot.x(n), _STYLES[layer.form]
        plot.bar(at + gap / 2, at + width - gap / 2, axis.value(layer), style, hint(layer))
    return plot.markup()


def hint(layer: LayerRecord) -> str:
    """A layer's figures in a line."""
    full = min(layer.shape)
    error = ""
    if layer.held_back_error is not None:
        error = f", held-back error {layer.held_back_error:.3g}"
    if layer.rank is None:
        return f"{layer.name}: dense" + (f" ({layer.reason})" if layer.reason else "") + error
    energy = "" if layer.energy is None else f", {100 * layer.energy:.2f} % of the energy"
    return f"{layer.name}: rank {layer.rank} of {full}, {layer.form}{energy}{error}"
