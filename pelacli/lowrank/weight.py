"""A weight that is the product of two thin factors, and stays so where a model applies it itself.

Some models read ``layer.weight`` and call ``F.linear`` (BEiT, EVA, Swin-V2), multiply by it (Mamba)
or hand it to torch's attention function (WavLM). They must pay the price of the factors all the
same.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

# Properties that are views of the product; all others (shape, dtype, …) are known without it.
_VIEWS = {"H", "mH", "data", "real", "imag"}
TRANSPOSES: set[Any] = {
    torch.Tensor.T.__get__,  # type: ignore[attr-defined]
    torch.Tensor.mT.__get__,  # type: ignore[attr-defined]
    torch.Tensor.t,
    torch.t,
}
MATMULS: set[Any] = {
    torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__,
}  # fmt: skip

# The body of the function without its first lines, which hand it over as a whole to whoever
# overrides one of its tensors: its own calls of ``F.linear`` are what can be followed.
attention_body: Any = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**F.__dict__, "has_torch_function": lambda tensors: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)


# inputs [..., in] → outputs [..., out]
Apply = Callable[[Tensor], Tensor]


class FactoredWeight(torch.Tensor):
    """The product up·down [out, in] as a tensor that is applied as two thin products: by
    ``F.linear``, by ``x @ weight.T`` or ``weight @ x``, and inside of
    ``F.multi_head_attention_forward``.

    Any other operation gets the dense product, with gradients to both factors. So a model that
    reads ``layer.weight`` still runs the factors at their price.
    """

    up: Tensor
    down: Tensor
    apply: Apply | None
    apply_transposed: Apply | None

    @staticmethod
    def __new__(
        cls,
        up: Tensor,
        down: Tensor,
        apply: Apply | None = None,
        apply_transposed: Apply | None = None,
    ) -> FactoredWeight:
        shape = (up.shape[0], down.shape[1])
        weight = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=up.dtype, device=up.device)
        weight.up, weight.down = up, down
        weight.apply, weight.apply_transposed = apply, apply_transposed
        return weight

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """What ``F.linear`` with this weight gives."""
        if self.apply is None:
            return F.linear(F.linear(x, self.down), self.up, bias)
        y = self.apply(x)
        return y if bias is None else y + bias

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            x, weight, bias = linear_arguments(args, kwargs)
            if isinstance(weight, FactoredWeight) and not isinstance(x, FactoredWeight):
                return weight.linear(x, bias)
        if func is F.multi_head_attention_forward:
            return attention_body(*args, **kwargs)
        if func in TRANSPOSES:
            before = args[0]
            return product(
                before.down.T,
                before.up.T,
                training=before.requires_grad,
                apply=before.apply_transposed,
                apply_transposed=before.apply,
            )
        if func in MATMULS and not kwargs:
            left, right = args
            if isinstance(right, FactoredWeight) and not isinstance(left, FactoredWeight):
                if right.apply_transposed is not None:
                    return right.apply_transposed(left)
                return (left @ right.up) @ right.down
            if isinstance(left, FactoredWeight) and not isinstance(right, FactoredWeight):
                return left.up @ (left.down @ right)
        with torch._C.DisableTorchFunctionSubclass():
            reads = func.__self__.__name__ if getattr(func, "__name__", "") == "__get__" else None
            if reads is not None and reads not in _VIEWS:
                return func(*args, **kwargs)
            return func(*tree_map(_dense, args), **tree_map(_dense, kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return func(*tree_map(_dense, args), **tree_map(_dense, kwargs or {}))


class _Product(torch.autograd.Function):
    """The factors' weight as a node of the graph: what takes it as a whole, as a fused kernel does,
    sends its gradient back to both of them."""

    @staticmethod
    def forward(ctx: Any, up: Tensor, down: Tensor, *apply: Apply | None) -> Tensor:
        ctx.save_for_backward(up, down)
        return FactoredWeight(up, down, *apply)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        up, down = ctx.saved_tensors
        return grads[0] @ down.T, up.T @ grads[0], None, None


def product(
    up: Tensor,
    down: Tensor,
    *,
    training: bool,
    apply: Apply | None = None,
    apply_transposed: Apply | None = None,
) -> Tensor:
    """up·down as a `FactoredWeight`: up [out, r], down [r, in].

    Args:
        training: whether what takes it whole sends gradients back; ``torch.jit.trace`` takes none
            that does.
        apply: multiplies inputs [..., in] by it, where there is a cheaper way than by the factors;
            apply_transposed: outputs [..., out] by its transpose.
    """
    if not training:
        return FactoredWeight(up, down, apply, apply_transposed)
    weight: Tensor = _Product.apply(up, down, apply, apply_transposed)
    return weight


def gathered(factor: Tensor) -> Tensor:
    """The whole of a factor that is spread over processes, with gradients to each process's share.

    All processes compute the same, so each share gets its gradient once and nothing is averaged.
    """
    gather = getattr(factor, "full_tensor", None)
    return factor if gather is None else cast(Tensor, gather())


def linear_arguments(args: Any, kwargs: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """(input, weight, bias) of a call of ``F.linear``, however they were passed."""
    names = ("input", "weight", "bias")
    named = dict(zip(names, args, strict=False)) | kwargs
    return named["input"], named["weight"], named.get("bias")


def _dense(value: Any) -> Any:
    return value.up @ value.down if isinstance(value, FactoredWeight) else value
