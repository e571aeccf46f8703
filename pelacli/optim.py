"""What a training run is made with: accelerate's engine, timm's optimizers, schedules and averages,
each from a recipe's settings, with one line of error where a setting names nothing there is.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, PartialState
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from pelacli.errors import RequestError

if TYPE_CHECKING:
    from pelacli.recipe import Train


def accelerator(settings: Train, device: str, output: Path | None) -> Accelerator:
    """accelerate's engine: device, precision, processes, trackers."""
    # It keeps one precision and device for a process; a recipe has several steps.
    AcceleratorState._reset_state()
    wanted = device.partition(":")[0]
    if PartialState._shared_state and not torch.distributed.is_initialized():
        PartialState._reset_state()
    try:
        made = Accelerator(
            cpu=wanted == "cpu",
            mixed_precision=settings.precision,
            log_with=settings.trackers or None,
            project_dir=str(output) if output else None,
            # A tap or a loss that is off leaves parameters without gradient, the head's say.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except (ValueError, ImportError) as error:
        raise RequestError(f"precision or trackers cannot be had here: {error}") from None
    missing = set(settings.trackers) - {str(getattr(t, "value", t)) for t in made.log_with or []}
    if missing - {"all"}:  # accelerate leaves them out without a word
        raise RequestError(f"tracker {min(missing)!r}: its package is not installed")
    if wanted not in ("auto", made.device.type):
        raise RequestError(f"device {device!r}: this machine has {made.device.type}")
    return made


def optimizer(module: nn.Module, settings: Train, no_weight_decay: Collection[str]) -> Optimizer:
    """timm's optimizer. Neither biases and other parameters of one dimension or none decay, nor
    those of the given names (wildcards allowed) and of the model's own list."""
    own: set[str] = getattr(module, "no_weight_decay", set)()
    groups: Any = partial(
        param_groups_weight_decay,
        weight_decay=settings.weight_decay,
        no_weight_decay_list={*no_weight_decay, *own},
    )
    if settings.layer_decay is not None:
        groups = partial(
            param_groups_layer_decay, layer_decay=settings.layer_decay, **groups.keywords
        )
    averages: dict[str, Any] = {"momentum": settings.momentum}
    if settings.betas is not None:
        averages["betas"] = settings.betas
    try:
        made = create_optimizer_v2(
            module, settings.opt, lr=settings.lr, param_group_fn=groups, **averages
        )
    except (ValueError, RuntimeError, ImportError, AssertionError, TypeError) as error:
        raise RequestError(f"opt {settings.opt!r}: timm refuses it ({error})") from None
    return cast(Optimizer, made)


def schedule(optimizer: Optimizer, settings: Train, total: int, per_epoch: float) -> Any:
    """timm's schedule over the whole run, in updates. What a recipe cannot set is chosen here:
    "step" falls tenfold each third of the run, "multistep" at 1/2 and 3/4, "poly" has power 1."""
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            settings.sched,
            num_epochs=max(total, 1),
            warmup_epochs=round(settings.warmup_epochs * per_epoch),
            warmup_lr=settings.warmup_lr,
            min_lr=settings.min_lr,
            decay_epochs=max(total / 3, 1) if settings.sched == "step" else None,
            decay_milestones=[total // 2, total * 3 // 4],
            decay_rate=1.0 if settings.sched == "poly" else 0.1,
            step_on_epochs=False,
            updates_per_epoch=1,
        )
    except (ValueError, AssertionError) as error:
        raise RequestError(f"sched {settings.sched!r}: timm refuses it ({error})") from None
    return scheduler


def average(module: nn.Module, decay: float | None) -> Any:
    """timm's moving average of the weights. The decay grows towards the wanted one as 1 − n^(−3/4),
    so that a short run's average is of its later weights and not of its start."""
    if not decay:
        return None
    return ModelEmaV3(module, decay=decay, use_warmup=True, warmup_power=0.75, exclude_buffers=True)


def recompute_activations(module: nn.Module, on: bool) -> None:
    """Recompute activations in the backward pass, by timm's or transformers' own switch."""
    network: Any = module
    if hasattr(network, "set_grad_checkpointing"):
        network.set_grad_checkpointing(on)
    elif getattr(network, "supports_gradient_checkpointing", False):
        network.gradient_checkpointing_enable() if on else network.gradient_checkpointing_disable()
    else:
        raise RequestError("checkpointing: this model cannot recompute activations; turn it off")
