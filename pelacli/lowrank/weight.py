"""A weight that is the product of two thin factors, and stays so where a model applies it itself.

Some models read ``layer.weight`` and call ``F.linear`` (BEiT, EVA, Swin-V2), multiply by it (Mamba)
or hand it to torch's attention function (WavLM). They must pay the price of the factors all the
same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Product:
    """A matrix of low rank, put together only where somebody wants more than to multiply by it.

    Attributes:
        shape: (out, in).
        sources: the tensors that it is made from; gradients go to them.
        factors: gives (down [r, in], up [out, r]), whose product it is.
        apply: multiplies inputs [..., in] by it, where that is not done by the factors;
            apply_transposed: outputs [..., out] by its transpose.
    """

    shape: tuple[int, int]
    sources: Sequence[Tensor]
    factors: Callable[[], tuple[Tensor, Tensor]]
    apply: Apply | None = None
    apply_transposed: Apply | None = None

    @property
    def whole(self) -> Tensor:
        down, up = self.factors()
        return up @ down

    @property
    def transposed(self) -> Product:
        def factors() -> tuple[Tensor, Tensor]:
            down, up = self.factors()
            return up.T, down.T

        shape = (self.shape[1], self.shape[0])
        return Product(shape, self.sources, factors, self.apply_transposed, self.apply)

    def as_tensor(self, *, training: bool) -> Tensor:
        """As a weight that a model may read.

        Args:
            training: whether what takes it whole sends gradients back; ``torch.jit.trace`` takes
                none that does.
        """
        if not training:
            return FactoredWeight(self)
        weight: Tensor = _Node.apply(self, *self.sources)
        return weight

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """What ``F.linear`` with this matrix gives."""
        if self.apply is None:
            down, up = self.factors()
            return F.linear(F.linear(x, down), up, bias)
        y = self.apply(x)
        return y if bias is None else y + bias

    def __matmul__(self, x: Tensor) -> Tensor:
        down, up = self.factors()
        return up @ (down @ x)

    def __rmatmul__(self, x: Tensor) -> Tensor:
        if self.apply_transposed is not None:
            return self.apply_transposed(x)
        down, up = self.factors()
        return (x @ up) @ down


class FactoredWeight(torch.Tensor):
    """A `Product` as a tensor [out, in] that is applied as two thin products: by ``F.linear``, by
    ``x @ weight.T`` or ``weight @ x``, and inside of ``F.multi_head_attention_forward``.

    Any other operation gets the dense product, with gradients to what it is made from. So a model
    that reads ``layer.weight`` still runs the factors at their price.
    """

    product: Product

    @staticmethod
    def __new__(cls, product: Product) -> FactoredWeight:
        like = product.sources[0]
        weight = torch.Tensor._make_wrapper_subclass(
            cls, product.shape, dtype=like.dtype, device=like.device
        )
        weight.product = product
        return weight

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            x, weight, bias = linear_arguments(args, kwargs)
            if isinstance(weight, FactoredWeight) and not isinstance(x, FactoredWeight):
                return weight.product.linear(x, bias)
        if func is F.multi_head_attention_forward:
            return attention_body(*args, **kwargs)
        if func in TRANSPOSES:
            weight = args[0]
            return weight.product.transposed.as_tensor(training=weight.requires_grad)
        if func in MATMULS and not kwargs:
            left, right = args
            if isinstance(right, FactoredWeight) and not isinstance(left, FactoredWeight):
                return right.product.__rmatmul__(left)
            if isinstance(left, FactoredWeight) and not isinstance(right, FactoredWeight):
                return left.product @ right
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


class _Node(torch.autograd.Function):
    """A factored weight as a node of the graph: what takes it as a whole, as a fused kernel does,
    sends its gradient back to what the weight is made from."""

    @staticmethod
    def forward(ctx: Any, product: Product, *sources: Tensor) -> Tensor:
        ctx.product = product
        ctx.save_for_backward(*sources)
        return FactoredWeight(product)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        sources = ctx.saved_tensors  # or torch's error, where one was changed in place meanwhile
        twice = torch.is_grad_enabled()
        with torch.enable_grad():
            whole = ctx.product.whole
        wanted = [s for s, is_wanted in zip(sources, ctx.needs_input_grad[1:], strict=True)
                  if is_wanted]  # fmt: skip
        gradients = iter(
            torch.autograd.grad(whole, wanted, grads[0], create_graph=twice, allow_unused=True)
        )
        return None, *(
            next(gradients) if is_wanted else None for is_wanted in ctx.needs_input_grad[1:]
        )


def gathered(factor: Tensor) -> Tensor:
    """The whole of a factor that is spread over processes, with gradients to each process's share.

    All processes compute the same, so each share gets its gradient once and nothing is averaged.
    """
    gather = getattr(factor, "full_tensor", None)
    if gather is None:
        return factor
    whole = cast(Tensor, gather())
    if whole.requires_grad:  # torch 2.9 leaves a gradient of other strides than its factor's whole
        whole.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
    return whole


def linear_arguments(args: Any, kwargs: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """(input, weight, bias) of a call of ``F.linear``, however they were passed."""
    names = ("input", "weight", "bias")
    named = dict(zip(names, args, strict=False)) | kwargs
    return named["input"], named["weight"], named.get("bias")


def _dense(value: Any) -> Any:
    return value.product.whole if isinstance(value, FactoredWeight) else value
