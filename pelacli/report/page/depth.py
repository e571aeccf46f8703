"""The rank of each layer across the depth of the model: a small plot for each kind of layer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import Markup

from pelacli.manifest.document import LayerRecord, Manifest
from pelacli.report.costs import kind_of
from pelacli.report.page.figure import Gallery
from pelacli.report.page.scales import Scale
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
    forms = {layer.form for layer in manifest.layers}
    groups = kinds(manifest.layers)
    if all(layer.rank is None for layer in groups.get(SINGLE, [])):
        groups.pop(SINGLE, None)  # usually the output head, which nobody factorises
    return Gallery(
        title="Ranks and forms across depth",
        caption="Each bar is a layer, from the input on the left to the output on the right: its "
        "rank as a share of the full rank. A dense layer has all of it. Point at a bar for its "
        "figures.",
        plots=[(kind, _draw(kind, layers)) for kind, layers in groups.items()],
        key=[(_STYLES[form], _NAMES[form]) for form in _STYLES if form in forms],
    )


def _draw(kind: str, layers: Sequence[LayerRecord]) -> Markup:
    detail = "; ".join(map(hint, layers))
    plot = Plot(SIZE, kind, detail, "layer", "rank")
    left, top, right, bottom = plot.frame
    plot.x = Scale(0, len(layers), left, right)
    plot.y = Scale(0, 1, bottom, top)
    numbers = [number_of(layer, n, kind) for n, layer in enumerate(layers, 1)]
    longest = max(map(len, numbers))
    every = -(-len(layers) // max(1, int((right - left) / (7 * longest + 10))))
    ticks = [(n + 0.5, text) for n, text in enumerate(numbers) if n % every == 0]
    plot.axes(ticks, [(v, f"{v:.0%}") for v in (0, 0.5, 1)])
    width = (right - left) / len(layers)
    gap = min(2.0, width / 4)
    for n, layer in enumerate(layers):
        share = 1.0 if layer.rank is None else layer.rank / max(1, min(layer.shape))
        at = plot.x(n)
        plot.bar(at + gap / 2, at + width - gap / 2, share, _STYLES[layer.form], hint(layer))
    return plot.markup()


def hint(layer: LayerRecord) -> str:
    """A layer's figures in a line."""
    full = min(layer.shape)
    if layer.rank is None:
        return f"{layer.name}: dense" + (f" ({layer.reason})" if layer.reason else "")
    energy = "" if layer.energy is None else f", {100 * layer.energy:.2f} % of the energy"
    return f"{layer.name}: rank {layer.rank} of {full}, {layer.form}{energy}"
