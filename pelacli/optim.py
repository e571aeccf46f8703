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

from pelacli.console import warn
from pelacli.errors import RequestError
from pelacli.lowrank import low_rank_layers
from pelacli.models import blocks

if TYPE_CHECKING:
    from pelacli.recipe import Train


_PARTS = ("down", "up")


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
            # Beside the run's own folder, which goes when its artefact is there.
            project_dir=str(tracking(output)) if output else None,
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
    if settings.precision == "fp16" and made.device.type == "cpu":  # accelerate says nothing
        warn("precision = 'fp16' is for GPUs: training in float32; CPUs have 'bf16'")
    return made


def tracking(output: Path) -> Path:
    """Where trackers keep what they write, as ``runs/vit_base/tracking/pretrain``."""
    return output.parent / "tracking" / output.name.removesuffix(".training")


def optimizer(module: nn.Module, settings: Train, no_weight_decay: Collection[str]) -> Optimizer:
    """timm's optimizer. Neither biases and other parameters of one dimension or none decay, nor
    those of the given names (wildcards allowed) and of the model's own list, nor, unless
    ``factor_decay`` is "each", the factors of low-rank layers. Factors learn at ``factor_lr`` · lr.
    """
    factors = {f"{name}.{part}.weight" for name in low_rank_layers(module) for part in _PARTS}
    own: set[str] = getattr(module, "no_weight_decay", set)()
    spared = {*no_weight_decay, *own}
    if settings.factor_decay != "each":
        spared |= factors
    groups: Any = partial(
        param_groups_weight_decay,
        weight_decay=settings.weight_decay,
        no_weight_decay_list=spared,
    )
    if settings.layer_decay is not None:
        if not hasattr(module, "group_matcher"):  # timm would put all into one layer
            raise RequestError(
                "layer_decay: the model does not say which layers it has (timm's image models do); "
                "leave it out"
            )
        groups = partial(
            param_groups_layer_decay, layer_decay=settings.layer_decay, **groups.keywords
        )
    averages: dict[str, Any] = {"momentum": settings.momentum}
    if settings.betas is not None:
        averages["betas"] = settings.betas
    slow = {id(p) for name, p in module.named_parameters() if name in factors}
    try:
        made = create_optimizer_v2(
            module,
            settings.opt,
            lr=settings.lr,
            param_group_fn=lambda m: _slower(groups(m), slow, settings.factor_lr),
            **averages,
        )
    except (ValueError, RuntimeError, ImportError, AssertionError, TypeError) as error:
        raise RequestError(f"opt {settings.opt!r}: timm refuses it ({error})") from None
    return cast(Optimizer, made)


def _slower(groups: list[dict[str, Any]], slow: set[int], factor: float) -> list[dict[str, Any]]:
    """The groups with those parameters in groups of their own, whose rate is that much of lr."""
    if factor == 1.0:
        return groups
    found = []
    for group in groups:
        for chosen in (True, False):
            if params := [p for p in group["params"] if (id(p) in slow) == chosen]:
                scale = group.get("lr_scale", 1.0) * (factor if chosen else 1.0)
                found.append(group | {"params": params, "lr_scale": scale})
    return found


def rate(optimizer: Optimizer) -> float:
    """The learning rate as it is now, before the factors of single groups."""
    group = optimizer.param_groups[-1]
    return float(group["lr"] / group.get("lr_scale", 1.0))


@torch.no_grad()
def decay_products(module: nn.Module, optimizer: Optimizer, weight_decay: float) -> None:
    """One step of weight decay on the products of the factors, beside the optimizer's own step.

    It is decoupled as AdamW's, a step of size lr along the gradient of
    ``weight_decay/2 · ‖up·down‖²``: ``up ← up − lr·weight_decay·up·(down·downᵀ)``, and the like
    for down. The inner products are rank × rank, so the product itself is never formed. Factors
    that decay one by one are, at their balance, pulled by the nuclear norm of the product instead,
    which takes from small singular values as much as from large ones.
    """
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for layer in low_rank_layers(module).values():
        up, down = layer.up.weight, layer.down.weight
        amount = weight_decay * rates.get(id(up), 0.0)  # 0: frozen
        if amount and layer.rank:
            taken = up @ (down @ down.T), (up.T @ up) @ down
            up.sub_(taken[0], alpha=amount)
            down.sub_(taken[1], alpha=amount)


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
    if scheduler is None:  # the others heed the groups' factors at every step
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * group.get("lr_scale", 1.0)
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


def compile_blocks(module: nn.Module, on: bool) -> None:
    """torch.compile the repeated blocks one by one; the whole of a model that has none.

    Block by block it takes less time where blocks are alike, and what hooks the blocks (taps,
    sharding) stays outside of the compiled code, which would keep the hooks of its first call.
    """
    found = [module.get_submodule(name) for name in blocks(module)] or [module]
    config: Any = torch._dynamo.config
    if on and hasattr(config, "recompile_limit"):
        # Ranks differ from block to block; past the limit torch would go on uncompiled.
        config.recompile_limit = max(config.recompile_limit, 8 * len(found))
    for block in found:
        if on:
            block.forward = torch.compile(block.forward)
        else:
            block.__dict__.pop("forward", None)
