"""What a layer costs at each rank in each form: in parameters, FLOPs, or time that was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pelacli.errors import RequestError
from pelacli.ranks.forms import Form, dense_weights, weights
from pelacli.ranks.spectrum import Spectrum


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """How long one layer takes on some device, in integer nanoseconds.

    Times need not rise with the rank.

    Attributes:
        dense: of the dense layer.
        ranks: form → the time at each rank from 0 on, [min(out, in) + 1]. A form that is not in it
            is not open to the layer.
    """

    dense: int
    ranks: Mapping[Form, NDArray[np.int64]]


@dataclass(frozen=True)
class Prices:
    """The costs of layers in one unit.

    Attributes:
        unit: "params", "flops" (of one sample) or "latency".
        tables: layer → its times, for the unit "latency".
    """

    unit: str
    tables: Mapping[str, LatencyTable] = field(default_factory=dict)

    def dense(self, spectrum: Spectrum) -> int:
        """The cost of the dense layer."""
        if self.unit == "latency":
            return int(self._table(spectrum).dense)
        return self._per_weight(spectrum) * dense_weights(spectrum.shape)

    def of(self, spectrum: Spectrum, rank: int | None, form: Form | None) -> int:
        """The cost of the layer at a rank in a form; None: dense."""
        if rank is None or form is None:
            return self.dense(spectrum)
        return int(self._costs(spectrum, np.array([rank]), form)[0])

    def cheapest(
        self, spectrum: Spectrum, ranks: NDArray[np.int64], forms: Sequence[Form]
    ) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
        """The cost of each rank in its cheapest form, and the index of that form: of equally cheap
        ones the first.

        Args:
            forms: those that are allowed.

        Raises:
            RequestError: the layer has times for none of them.
        """
        known = [i for i, form in enumerate(forms) if self._has(spectrum, form)]
        if not known:
            raise self._untimed(spectrum, forms)
        costs = np.stack([self._costs(spectrum, ranks, forms[i]) for i in known])
        best = costs.argmin(axis=0)
        return costs[best, np.arange(len(ranks))], np.array(known)[best]

    def _costs(self, spectrum: Spectrum, ranks: NDArray[np.int64], form: Form) -> NDArray[np.int64]:
        if self.unit != "latency":
            return self._per_weight(spectrum) * weights(spectrum.shape, ranks, form)
        if not self._has(spectrum, form):
            raise self._untimed(spectrum, [form])
        times = np.asarray(self._table(spectrum).ranks[form], np.int64)
        if times.shape != (min(spectrum.shape) + 1,):
            raise ValueError(
                f"{spectrum.name}: {times.shape} latencies for a layer of shape {spectrum.shape}"
            )
        return times[ranks]

    def _untimed(self, spectrum: Spectrum, forms: Sequence[Form]) -> RequestError:
        timed = " or ".join(self._table(spectrum).ranks)
        return RequestError(
            f"{spectrum.name}: was not timed in form {' or '.join(forms)}; take {timed or 'dense'}"
        )

    def _has(self, spectrum: Spectrum, form: Form) -> bool:
        return self.unit != "latency" or form in self._table(spectrum).ranks

    def _table(self, spectrum: Spectrum) -> LatencyTable:
        try:
            return self.tables[spectrum.name]
        except KeyError:
            raise ValueError(f"{spectrum.name}: its latencies are unknown") from None

    def _per_weight(self, spectrum: Spectrum) -> int:
        """A weight of the layer or of its factors costs 1 parameter, or 2 · tokens FLOPs."""
        return 1 if self.unit == "params" else round(2 * spectrum.tokens)
