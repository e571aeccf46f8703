"""The weights of a run over its processes: each process has all of them (one device, DDP), or its
shard of each (FSDP 2). The training loop sees no difference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from pelacli.errors import RequestError
from pelacli.models.blocks import blocks
from pelacli.models.pairs.families import find_view
from pelacli.system.devices import move_module

# (module, batch, share of the run that is over) → losses by name
Losses = Callable[[nn.Module, Any, float], Mapping[str, Tensor]]


class Weights(Protocol):
    """The weights of a run.

    `start` comes first: the optimizer that it takes is made of ``trained``, and a checkpoint is
    read into ``modules`` before.

    Attributes:
        trained: the module that the losses see; its parameters are the optimizer's.
        modules: file stem → whole module, as checkpoints hold them: "model", and "ema" where there
            is an average. They are up to date after `gather`.
    """

    trained: nn.Module
    modules: dict[str, nn.Module]

    def start(self, optimizer: Optimizer, states: Mapping[str, Any] | None) -> Any:
        """Take the weights of ``modules`` and an optimizer's states from a checkpoint.

        Returns:
            accelerate's optimizer, around the one that is given.
        """

    def forward(self, batch: Any, done: float) -> dict[str, Tensor]:
        """The losses of a batch, under the run's precision.

        Args:
            done: the share of the run that is over, 0 to 1.
        """

    def syncing(self, on: bool) -> AbstractContextManager[Any]:
        """While active, whether a backward pass shares its gradients with the other processes."""

    def update(self, step: int) -> None:
        """Move the average, if there is one, after an update."""

    def gather(self) -> None:
        """Bring ``modules`` up to date. All processes must call it."""

    def states(self) -> dict[str, Any]:
        """The optimizer's states, as `start` takes them, whole. All processes must call it."""

    def result(self) -> AbstractContextManager[nn.Module]:
        """While active, the whole module that is evaluated: the average, where there is one."""


def distribute(
    accelerator: Accelerator,
    module: nn.Module,
    losses: Losses,
    average: Callable[[nn.Module], Any],
    channels_last: bool,
) -> Weights:
    """The module's weights, whole or in shards, as the launcher asks for.

    Args:
        losses: what `Weights.forward` computes.
        average: module → timm's moving average of its weights, or None.

    Raises:
        RequestError: the launcher asks for what pela cannot do.
    """
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise RequestError(f"launched with {kind.value}: pela runs under DDP or FSDP 2")
    if kind != DistributedType.FSDP:
        return WholeWeights(accelerator, module, losses, average, channels_last)
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise RequestError("launched with FSDP 1: give accelerate --fsdp_version 2")
    if plugin.activation_checkpointing:
        raise RequestError(
            "launched with fsdp_activation_checkpointing: set checkpointing = true in the recipe "
            "instead"
        )
    if type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy":
        raise RequestError(
            "launched with fsdp_offload_params: pela keeps the shards on the devices"
        )
    if find_view(module) is not None:  # they are called in parts, which FSDP does not gather
        raise RequestError("launched with FSDP: models of images and texts train under DDP")
    if channels_last:
        raise RequestError("channels_last: FSDP cannot shard it; set it to false")
    return ShardedWeights(accelerator, module, losses, average)


class WholeWeights:
    """Every process has all weights; see `Weights`."""

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        losses: Losses,
        average: Callable[[nn.Module], Any],
        channels_last: bool,
    ) -> None:
        self.trained = move_module(module, accelerator.device, channels_last)
        self._accelerator, self._losses = accelerator, losses
        self._average = average(module)
        self._result: nn.Module = self._average.module if self._average else module
        self.modules = {"model": module} | ({"ema": self._result} if self._average else {})

    def start(self, optimizer: Optimizer, states: Mapping[str, Any] | None) -> Any:
        self._optimizer = optimizer
        self._model = self._accelerator.prepare_model(_Forward(self.trained, self._losses))
        stepper = self._accelerator.prepare_optimizer(optimizer)
        # Not before prepare_optimizer: it would move the counters of steps to the GPU, and every
        # update would wait for them.
        if states:
            optimizer.load_state_dict(states["optimizer"])
        return stepper

    def forward(self, batch: Any, done: float) -> dict[str, Tensor]:
        named: dict[str, Tensor] = self._model(batch, done)
        return named

    def syncing(self, on: bool) -> AbstractContextManager[Any]:
        return nullcontext() if on else self._accelerator.no_sync(self._model)

    def update(self, step: int) -> None:
        if self._average:
            self._average.update(self.trained, step=step)

    def gather(self) -> None:
        pass

    def states(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer.state_dict()}

    @contextmanager
    def result(self) -> Iterator[nn.Module]:
        yield self._result


class ShardedWeights:
    """Each process has its share of every weight, of its average and of the optimizer's states; see
    `Weights`.

    What trains is a sharded copy. The whole modules stay on the CPU and are filled from the shards
    for checkpoints, for evaluations (in which processes may have different numbers of batches, so
    that they must not communicate on the way) and at the end.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        losses: Losses,
        average: Callable[[nn.Module], Any],
    ) -> None:
        self._accelerator, self._losses = accelerator, losses
        self._average = average(module.to("cpu"))
        self.modules = {"model": module}
        if self._average:
            self.modules["ema"] = self._average.module
        self._result = self.modules.get("ema", module)
        self.trained = copy.deepcopy(module).to(accelerator.device)
        plugin = accelerator.state.fsdp_plugin
        if plugin.auto_wrap_policy is None:  # the unit that is gathered at once
            from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

            names = {type(module.get_submodule(name)).__name__ for name in blocks(module)}
            plugin.auto_wrap_policy = transformer_auto_wrap_policy
            plugin.transformer_cls_names_to_wrap = sorted(names)

    def start(self, optimizer: Optimizer, states: Mapping[str, Any] | None) -> Any:
        self._optimizer = optimizer
        self.trained.load_state_dict(self.modules["model"].state_dict())
        self.trained, stepper = self._accelerator.prepare(self.trained, optimizer)
        if states:
            optimizer.load_state_dict(self._spread(states["optimizer"]))
        # The share of the average that belongs to this process, in the order of the parameters.
        whole = dict(self._result.named_parameters())
        self._shadow = [
            _like(whole[name].detach().to(p.device), p).to_local().clone()
            for name, p in self._parameters()
        ]
        return stepper

    def forward(self, batch: Any, done: float) -> dict[str, Tensor]:
        with self._accelerator.autocast():
            return dict(self._losses(self.trained, batch, done))

    def syncing(self, on: bool) -> AbstractContextManager[Any]:
        return nullcontext() if on else self._accelerator.no_sync(self.trained)

    @torch.no_grad()
    def update(self, step: int) -> None:
        if self._average:
            shards = [p.to_local() for _, p in self._parameters()]
            torch._foreach_lerp_(self._shadow, shards, weight=1 - self._average.get_decay(step))

    @torch.no_grad()
    def gather(self) -> None:
        model = dict(self.modules["model"].named_parameters())
        ema = dict(self.modules["ema"].named_parameters()) if self._average else {}
        for (name, p), share in zip(self._parameters(), self._shadow, strict=True):
            model[name].copy_(p.full_tensor())
            if ema:
                ema[name].copy_(_assembled(share, p))
        buffers = dict(self.trained.named_buffers())
        for module in self.modules.values():  # timm's average copies buffers as well
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])

    def states(self) -> dict[str, Any]:
        def gathered(value: Any) -> Any:
            return value.full_tensor().cpu() if hasattr(value, "full_tensor") else value

        return {"optimizer": tree_map(gathered, self._optimizer.state_dict())}

    @contextmanager
    def result(self) -> Iterator[nn.Module]:
        self.gather()
        self._result.to(self._accelerator.device)
        try:
            yield self._result
        finally:
            self._result.to("cpu")

    def _parameters(self) -> Iterator[tuple[str, Any]]:
        """Those that train, by name: torch's DTensors, which know how they are spread."""
        yield from self.trained.named_parameters()

    def _spread(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """An optimizer's whole states in shards, where they have the shape of their parameter."""
        numbers = [n for group in states["param_groups"] for n in group["params"]]
        trained = [p for group in self._optimizer.param_groups for p in group["params"]]
        parameters = dict(zip(numbers, trained, strict=True))

        def share(number: int, value: Any) -> Any:
            p = parameters[number]
            if isinstance(value, Tensor) and value.shape == p.shape:
                return _like(value.to(p.device), p)
            return value

        return dict(states) | {
            "state": {
                number: {key: share(number, value) for key, value in entries.items()}
                for number, entries in states["state"].items()
            }
        }


class _Forward(nn.Module):
    """The losses as the forward pass of a module, so that DDP and autocast wrap all of it, and the
    losses still see the model itself: its names, its hooks, its parameters."""

    def __init__(self, module: nn.Module, losses: Losses) -> None:
        super().__init__()
        self.module, self.losses = module, losses

    def forward(self, batch: Any, done: float) -> dict[str, Tensor]:
        return dict(self.losses(self.module, batch, done))


def _like(whole: Tensor, parameter: Any) -> Any:
    """A whole tensor, the same on all processes, spread as the parameter is."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _assembled(share: Tensor, parameter: Any) -> Tensor:
    """The whole tensor of which each process has a share, as it has of the parameter."""
    from torch.distributed.tensor import DTensor

    spread = DTensor.from_local(
        share,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    whole: Tensor = spread.full_tensor()
    return whole
