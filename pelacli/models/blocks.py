"""The repeated blocks of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn


def blocks(module: nn.Module) -> list[str]:
    """Names of the repeated blocks, in order: the default taps.

    A block is a child of an ``nn.ModuleList`` or ``nn.Sequential`` whose children hold at least
    two linear maps each and are all of one class (in a list they may differ, as attention and
    recurrence take turns in hybrids); the innermost such containers count, so Swin's stages give
    way to their blocks.
    """

    blocks = _innermost(module, all)
    # Or those of a stage whose other children are convolutions (EfficientFormer's last).
    return blocks or _innermost(module, any)


def _innermost(module: nn.Module, of: Callable[[Iterable[bool]], bool]) -> list[str]:
    """Children with two linear maps, in the innermost containers where ``of`` them (all, any)
    have so many."""

    def is_stack(container: nn.Module) -> bool:
        children = list(container.children())
        return (
            isinstance(container, nn.ModuleList | nn.Sequential)
            and len(children) >= 1
            and (isinstance(container, nn.ModuleList) or of is any or _of_one_class(children))
            and of(_matrices(child) >= 2 for child in children)
        )

    stacks = [(name, m) for name, m in module.named_modules() if is_stack(m)]
    innermost = [
        (name, m)
        for name, m in stacks
        if not any(inner is not m and is_stack(inner) for inner in m.modules())
    ]
    return [
        f"{name}.{i}" for name, m in innermost for i, c in m.named_children() if _matrices(c) >= 2
    ]


def _of_one_class(modules: Iterable[nn.Module]) -> bool:
    return len({type(m) for m in modules}) == 1


def _matrices(module: nn.Module) -> int:
    return sum(p.ndim == 2 for p in module.parameters())
