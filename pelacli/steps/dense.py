"""A dense model, its linear layers and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from pelacli.artefact import description
from pelacli.errors import RequestError
from pelacli.factorize import needs
from pelacli.factorize.batches import samples_in
from pelacli.factorize.needs import Needs
from pelacli.lowrank import find
from pelacli.lowrank.find import Selection
from pelacli.lowrank.layer import Layer
from pelacli.measure import flops
from pelacli.measure.flops import Cost
from pelacli.measure.model_times import ModelTimes
from pelacli.models.blocks import blocks
from pelacli.models.opened import OpenModel
from pelacli.models.prediction import predict
from pelacli.planning.size import fixed_flops, flop_obstacles
from pelacli.ranks.prices import LatencyTable
from pelacli.ranks.size import ModelSize
from pelacli.system import devices, memory


@dataclass(frozen=True)
class DenseModel:
    """A dense model and its linear layers.

    Attributes:
        ref: what the user calls the model.
        layers: all linear maps, each with the reason why it stays dense, if any.
        cost: FLOPs of one sample; None where they are unknown.
        opened: the model as its library describes it.
        times: of its layers on a device; None where no budget counts time.
    """

    module: nn.Module
    ref: str
    layers: Sequence[Layer]
    cost: Cost | None
    opened: OpenModel
    times: ModelTimes | None = None

    @property
    def tables(self) -> Mapping[str, LatencyTable] | None:
        """Layer → its times at each rank."""
        return None if self.times is None else self.times.tables

    @property
    def free(self) -> list[Layer]:
        """The layers that may be factorised."""
        return [layer for layer in self.layers if layer.reason is None]

    @property
    def free_memory(self) -> int | None:
        """Bytes that are free where the model is; None where it can't be told."""
        if self.opened.weights is not None:  # its blocks come and go
            return memory.available()
        return devices.memory_left(devices.home(self.module))

    def calibration_needs(
        self,
        batches: Sequence[Any],
        sections: Sequence[Sequence[Layer]] | None = None,
        *,
        correct: bool,
        language_model: bool,
    ) -> Needs | None:
        """What calibration on these batches takes; see `pelacli.factorize.needs.calibrated`.

        Args:
            sections: the layers block by block; None: all at once.
            language_model: whether its logits are made apart.
        """
        return needs.calibrated(
            [self.free] if sections is None else sections,
            None if self.cost is None else self.cost.tokens,
            batches,
            correct=correct,
            vocabulary=needs.vocabulary_of(self.module) if language_model else 0,
            block=0 if self.opened.weights is None else self._largest_block,
        )

    @property
    def _largest_block(self) -> int:
        """Bytes of the largest block, in float32."""
        parts = map(self.module.get_submodule, blocks(self.module))
        return max((4 * sum(p.numel() for p in part.parameters()) for part in parts), default=0)

    @property
    def size(self) -> ModelSize:
        """What a plan must know of the model beside its spectra."""
        rows = description.dense_records(self.layers, self.cost)
        total = None if self.cost is None else self.cost.total
        free = {layer.name for layer in self.free}
        return ModelSize(
            shapes={row.name: row.shape for row in rows},
            fixed_params=find.fixed_params(self.module, self.free),
            fixed_flops=fixed_flops(total, rows, free),
            fixed_latency=None if self.times is None else self.times.fixed,
            obstacles=description.obstacles(self.module, self.layers),
            flop_obstacles=flop_obstacles(total, rows, free),
        )


def examine(
    module: nn.Module,
    selection: Selection,
    ref: str,
    opened: OpenModel,
    *,
    batch: Any = None,
    run: Callable[[nn.Module, Any], Tensor] = predict,
    flag_prefix: str = "",
) -> DenseModel:
    """Find the layers of a dense model and count its FLOPs.

    Args:
        selection: which layers may be factorised.
        batch: to count FLOPs on where no plain sample can be made, as `predict` takes it.
        run: runs the model on a batch.
        flag_prefix: stands before "include" and "exclude" in messages ("--" on a command line).

    Raises:
        RequestError: the model is low-rank already, none of its layers may be factorised, or an
            expression of the selection matches nothing.
    """
    layers = find.find_dense(module, selection, ref, flag_prefix)
    if opened.weights is not None:
        layers = [replace(layer, read=opened.weights.read) for layer in layers]
    cost = description.cost(opened, layers)
    if cost is None and batch is not None:
        cost = _count(module, layers, batch, run)
    layers = description.with_read_weights_dense(layers, cost)
    find.free_layers(layers, ref)
    return DenseModel(module, ref, layers, cost, opened)


def check_flops_known(dense: DenseModel, unit: str, remedy: str) -> None:
    """Refuse a budget in FLOPs or time of a model that was not run on a sample.

    Raises:
        RequestError: with the remedy.
    """
    if unit != "params" and dense.cost is None:
        raise RequestError(f"{dense.ref}: its FLOPs are unknown{remedy}")


def _count(
    module: nn.Module,
    layers: Sequence[Layer],
    batch: Any,
    run: Callable[[nn.Module, Any], Tensor],
) -> Cost:
    """FLOPs of one sample of the batch."""
    return flops.count(module, layers, lambda m: run(m, batch), samples_in(batch))
