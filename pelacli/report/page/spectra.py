"""The spectra that ranks were chosen from, with the cut: a small plot for each kind of layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from pelacli.manifest.document import LayerRecord
from pelacli.planning.stored import Spectra
from pelacli.ranks.spectrum import Spectrum
from pelacli.report.page import scales
from pelacli.report.page.depth import SIZE, hint, kinds
from pelacli.report.page.figure import Gallery
from pelacli.report.page.svg import Plot

_POINTS = 48  # of a line
_SHADES = 6  # from the input to the output
_DEEPEST = 1e-9  # what is smaller than this share of the largest is rounding


def gallery(spectra: Spectra, layers: Sequence[LayerRecord]) -> Gallery:
    """The spectra of the layers that might be factorised.

    Args:
        layers: of the model as it was cut.
    """
    by_name = {spectrum.name: spectrum for spectrum in spectra.layers}
    groups = kinds([layer for layer in layers if layer.name in by_name])
    return Gallery(
        title="Spectra with the cut",
        caption=f"How much each rank adds ({spectra.unit}); a line for each layer, pale near the "
        "input and strong near the output. A dot is the cut: what is to the right of it is left "
        "out. A line without a dot is of a layer that stays dense.",
        plots=[(kind, _draw(kind, members, by_name)) for kind, members in groups.items()],
    )


def _draw(kind: str, layers: Sequence[LayerRecord], by_name: Mapping[str, Spectrum]) -> Markup:
    plot = Plot(SIZE, kind, "; ".join(map(hint, layers)), "rank, % of the full rank", "energy")
    left, top, right, bottom = plot.frame
    plot.x = scales.Scale(0, 100, left, right)
    lines = [_sampled(by_name[layer.name]) for layer in layers]
    largest = max((y for line in lines for _, y in line), default=1.0)
    seen = [[(x, y) for x, y in line if y > _DEEPEST * largest] for line in lines]
    plot.y = scales.around((y for line in seen for _, y in line), bottom, top, log=True)
    plot.axes([(v, f"{v}") for v in (0, 25, 50, 75, 100)])
    for n, line in enumerate(seen):
        shade = n * _SHADES // max(1, len(seen))
        plot.line(line, f"shade{shade}")
    for layer in layers:
        energies = by_name[layer.name].energies
        if layer.rank is None or not 0 < layer.rank < len(energies):
            continue
        at = float(energies[layer.rank - 1])
        if at > _DEEPEST * largest:
            share = 100 * layer.rank / len(energies)
            plot.dot(share, at, "dot cut", hint(layer), 3)
    return plot.markup()


def _sampled(spectrum: Spectrum) -> list[tuple[float, float]]:
    """(percent of the full rank, energy), at ranks that stand closer at the beginning."""
    full = len(spectrum.energies)
    if not full:
        return []
    ranks = np.unique(np.geomspace(1, full, _POINTS).round().astype(int).clip(1, full))
    more = np.unique(np.linspace(1, full, _POINTS).round().astype(int))
    ranks = np.union1d(ranks, more)
    return [(100 * int(rank) / full, float(spectrum.energies[rank - 1])) for rank in ranks]
