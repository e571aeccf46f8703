"""Models built around a compressed backbone: what all of them must keep. Shared by tests."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pelacli.artefact import changes
from pelacli.lowrank import find


def images(found, batch=2):
    torch.manual_seed(1)
    return torch.randn(batch, *found.inputs.size)


def counted(module):
    return sum(p.numel() for p in module.parameters())


def flops(found):
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        found.module.eval()(images(found, 1))
    return counter.get_total_flops()


class Moved:
    """A compressed backbone, before and after a model is built around it.

    Args:
        source: the backbone's artefact; the model is built after this.
    """

    def __init__(self, source):
        self.manifest, self.places = source.manifest, find.linear_modules(source.module)
        self.low = set(find.low_rank_layers(source.module).values())
        assert self.low

    def check(self, fitted, whole):
        """The record of the model around it, which must hold.

        Args:
            fitted: the model; ``whole``: the same around the dense backbone.
        """
        described = changes.relocated(fitted, self.manifest, self.places)

        # The very modules, under their new names, with their ranks and energies.
        there = find.low_rank_layers(fitted.module)
        assert set(there.values()) == self.low
        rows = {row.name: row for row in described.layers if row.rank is not None}
        assert set(rows) == set(there)
        old = {
            id(self.places[row.name]): row for row in self.manifest.layers if row.rank is not None
        }
        for place, module in there.items():
            before = old[id(module)]
            assert (rows[place].rank, rows[place].energy) == (module.rank, before.energy)
            assert rows[place].params == before.params

        # They run as factors: the totals are torch's own counts, and of the same with dense layers.
        assert described.params.after == counted(fitted.module)
        assert described.params.before == counted(whole.module)
        assert described.flops.after == flops(fitted)
        assert described.flops.before == flops(whole)
        return described
