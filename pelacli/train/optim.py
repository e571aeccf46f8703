"""timm's optimizers, schedules and averages, from a recipe's settings; a setting that timm does not
know is refused in one line.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from pelacli.recipe.training import Train

from pelacli.errors import RequestError
from pelacli.lowrank.find import low_rank_layers
from pelacli.train.regularisation import no_decay

_PARTS = ("down", "up")


def optimizer(module: nn.Module, settings: Train) -> Optimizer:
    """timm's optimizer.

    These parameters do not decay: biases and others of one dimension or none, those that
    `pelacli.train.regularisation.no_decay` names, and, unless ``factor_decay`` is "each", the
    factors of low-rank layers. Factors learn at ``factor_lr`` · lr.

    Raises:
        RequestError: timm knows no such optimizer, or ``layer_decay`` does not fit the model.
    """
    factors = {f"{name}.{part}.weight" for name in low_rank_layers(module) for part in _PARTS}
    undecayed = no_decay(module)
    if settings.factor_decay != "each":
        undecayed |= factors
    groups: Any = partial(
        param_groups_weight_decay,
        weight_decay=settings.weight_decay,
        no_weight_decay_list=undecayed,
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
    factor_ids = {id(p) for name, p in module.named_parameters() if name in factors}
    try:
        optimizer = create_optimizer_v2(
            module,
            settings.opt,
            lr=settings.lr,
            param_group_fn=lambda m: _scaled(groups(m), factor_ids, settings.factor_lr),
            **averages,
        )
    except (ValueError, RuntimeError, ImportError, AssertionError, TypeError) as error:
        raise RequestError(f"opt {settings.opt!r}: timm refuses it ({error})") from None
    return cast(Optimizer, optimizer)


def _scaled(
    groups: list[dict[str, Any]], parameter_ids: set[int], scale: float
) -> list[dict[str, Any]]:
    """The groups, with those parameters in groups of their own whose rate is ``scale`` · lr."""
    if scale == 1.0:
        return groups
    split = []
    for group in groups:
        for is_scaled in (True, False):
            if params := [p for p in group["params"] if (id(p) in parameter_ids) == is_scaled]:
                own_scale = group.get("lr_scale", 1.0) * (scale if is_scaled else 1.0)
                split.append(group | {"params": params, "lr_scale": own_scale})
    return split


def rate(optimizer: Optimizer) -> float:
    """The present learning rate, before it is scaled for single groups."""
    group = optimizer.param_groups[-1]
    return float(group["lr"] / group.get("lr_scale", 1.0))


@torch.no_grad()
def decay_products(module: nn.Module, optimizer: Optimizer, weight_decay: float) -> None:
    """One step of weight decay on the products of the factors, beside the optimizer's own step.

    It is decoupled as AdamW's, a step of size lr along the gradient of
    ``weight_decay/2 · ‖up·down‖²``: ``up ← up − lr·weight_decay·up·(down·downᵀ)``, and likewise
    for down. The inner products are rank × rank, so the product itself is never formed. To decay
    each factor instead amounts, where the two are balanced, to penalising the nuclear norm of the
    product, which takes from small singular values as much as from large ones. In pivot form the
    gradients are those of the entries that are stored.
    """
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for layer in low_rank_layers(module).values():
        up, down = layer.up.weight, layer.down.weight
        amount = weight_decay * rates.get(id(up), 0.0)  # 0: frozen
        if amount and layer.rank:
            gradients = layer.decay_gradients()
            up.sub_(gradients[0], alpha=amount)
            down.sub_(gradients[1], alpha=amount)


def schedule(optimizer: Optimizer, settings: Train, total: int, per_epoch: float) -> Any:
    """timm's schedule over the whole run, in updates; None for a constant rate.

    What a recipe cannot set is chosen here: "step" falls tenfold after each third of the run,
    "multistep" after 1/2 and 3/4 of it, "poly" has power 1.

    Raises:
        RequestError: timm knows no such schedule.
    """
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
    if scheduler is None:  # a scheduler would scale the rates of the groups at every step
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * group.get("lr_scale", 1.0)
    return scheduler


def average(module: nn.Module, decay: float | None) -> Any:
    """timm's moving average of the weights; None without a decay. The decay of update n is
    1 − n^(−3/4), and at most ``decay``: so a short run's average is of its later weights and not of
    its start."""
    if not decay:
        return None
    return ModelEmaV3(module, decay=decay, use_warmup=True, warmup_power=0.75, exclude_buffers=True)
