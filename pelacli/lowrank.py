"""The low-rank layer, and how it gets into a model: find layers, replace them, fold them back.

Words (``out`` × ``in`` weight W, rank r): ``down`` is r × in, ``up`` is out × r, W′ = up·down.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.factored import product


class LowRankLinear(nn.Module):
    """``y = up(down(x))``: a linear map of rank r in the place of an ``nn.Linear``.

    Args:
        in_features, out_features: as in ``nn.Linear``.
        rank: inner width r, 0 ≤ r. It costs r·(in + out) parameters instead of in·out.
        bias: whether ``up`` has a bias.

    Shapes: x is [..., in], the result [..., out]; ``down.weight`` is [r, in], ``up.weight``
    [out, r], ``up.bias`` [out].

    ``weight`` and ``bias`` answer as the dense layer's would, because some models read them and
    call ``F.linear`` themselves (BEiT, EVA, Swin-V2); see `pelacli.factored`.
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool = True, **kwargs: Any
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        if rank:
            self.down = nn.Linear(in_features, rank, bias=False, **kwargs)
            self.up = nn.Linear(rank, out_features, bias=bias, **kwargs)
        else:  # nn.Linear warns about empty weights, which are what rank 0 means
            self.down, self.up = (nn.Linear(1, 1, bias=False, device="meta") for _ in range(2))
            self.down.in_features, self.down.out_features = in_features, 0
            self.up.in_features, self.up.out_features = 0, out_features
            self.down.weight = nn.Parameter(torch.empty(0, in_features, **kwargs))
            self.up.weight = nn.Parameter(torch.empty(out_features, 0, **kwargs))
            if bias:
                self.up.bias = nn.Parameter(torch.zeros(out_features, **kwargs))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.up(self.down(x)))

    @property
    def weight(self) -> Tensor:
        """up·down, [out, in]; multiplied out only for those who do more than ``F.linear``."""
        return product(self.up.weight, self.down.weight, training=self.training)

    @property
    def bias(self) -> Tensor | None:
        return cast("Tensor | None", self.up.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


_BY_PARAMETER = {"in_proj", "experts"}  # kinds that are one parameter of a module, and named so


@dataclass(frozen=True)
class Layer:
    """A linear map found in a model.

    Attributes:
        name: the module's name; for a fused projection the parameter's.
        shape: (out, in); of fused experts (experts · a, b), as [experts, a, b] is stored.
        kind: "linear", "conv1d" (transformers' transposed linear), "conv1x1", "in_proj" or
            "experts" (a parameter that holds the weights of all experts of a mixture).
        reason: why it cannot or shall not be factorised; None where it can.
    """

    name: str
    module: nn.Module
    shape: tuple[int, int]
    kind: str
    reason: str | None = None

    def release(self) -> None:
        """Let go of the module once it is replaced, so that its weight's memory comes free."""
        object.__setattr__(self, "module", nn.Module())

    @property
    def params(self) -> int:
        """Parameters of the weight matrix, without the bias."""
        return self.shape[0] * self.shape[1]

    @property
    def weight(self) -> Tensor:
        """The weight as out × in, whatever way the module stores it. A view, detached."""
        name = self.name.rpartition(".")[2] if self.kind in _BY_PARAMETER else "weight"
        weight = cast(Tensor, getattr(self.module, name)).detach()
        return weight.T if self.kind == "conv1d" else weight.reshape(self.shape)

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.module, "bias", None)
        return None if bias is None else cast(Tensor, bias).detach()


def find_layers(
    module: nn.Module,
    *,
    head: Collection[str] = (),
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
) -> list[Layer]:
    """Every linear map of ``module`` in module order, each with the reason why not, if any.

    Args:
        head: names of the output head's modules; they stay dense.
        include, exclude: regular expressions, searched (``re.search``) in module names. With
            ``include`` only what matches is factorised, and the head is no exception then;
            ``exclude`` has the last word.
    """
    include, exclude = list(include), list(exclude)
    embeddings = {
        id(m.weight): name for name, m in module.named_modules() if isinstance(m, nn.Embedding)
    }
    # It hands its weights to one fused function, where low-rank factors would be multiplied out.
    fused = {id(m.out_proj) for m in module.modules() if isinstance(m, nn.MultiheadAttention)}
    owners: dict[int, str] = {}
    found: list[Layer] = []
    for name, child in module.named_modules():
        found += [
            Layer(f"{name}.{part}", child, (p.shape[0] * p.shape[1], p.shape[2]), "experts", why)
            for part, p, why in _experts(child)
        ]
        described = _describe(child)
        if described is None:
            continue
        kind, shape, reason = described
        name = f"{name}.in_proj_weight" if kind == "in_proj" else name
        weight = getattr(child, "in_proj_weight" if kind == "in_proj" else "weight", None)
        if reason is None and id(child) in fused:
            reason = "inside nn.MultiheadAttention"
        if reason is None and id(weight) in embeddings:
            reason = f"tied to {embeddings[id(weight)]}"
        if reason is None and owners.setdefault(id(weight), name) != name:
            reason = f"shares its weight with {owners[id(weight)]}"
        if reason is None and include and not any(re.search(p, name) for p in include):
            reason = "not included"
        if reason is None and not include and _within(name, head):
            reason = "output head"
        if reason is None and any(re.search(p, name) for p in exclude):
            reason = "excluded"
        found.append(Layer(name, child, shape, kind, reason))
    # The first owner of a shared weight must stay dense too, or the tie would be cut silently.
    shared = {f.reason.removeprefix("shares its weight with ") for f in found if f.reason}
    return [
        Layer(f.name, f.module, f.shape, f.kind, "its weight is shared")
        if f.reason is None and f.name in shared
        else f
        for f in found
    ]


def replace(module: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor, Tensor | None]]) -> None:
    """Put `LowRankLinear` in the place of the named layers, in place.

    Args:
        factors: layer name → (down [r, in], up [out, r], bias [out] or None). A module that is
            registered under several names is replaced under all of them.

    Raises:
        RequestError: a name is no layer of the module.
    """
    _put(module, _built(module, factors))


@contextmanager
def replaced(
    module: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor, Tensor | None]]
) -> Iterator[None]:
    """`replace` for a while: afterwards the very modules from before are back in their places."""
    pairs = _built(module, factors)
    _put(module, pairs)
    try:
        yield
    finally:
        _put(module, [(new, old) for old, new in pairs])


def _built(
    module: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor, Tensor | None]]
) -> list[tuple[nn.Module, nn.Module]]:
    """(the layer there is, the low-rank one for its place) of each name."""
    pairs: list[tuple[nn.Module, nn.Module]] = []
    for name, found in factors.items():
        old = submodule(module, name)
        down, up, bias = found
        new = LowRankLinear(
            down.shape[1],
            up.shape[0],
            down.shape[0],
            bias is not None,
            device="meta",
            dtype=down.dtype,
        )
        new.down.weight, new.up.weight = _parameter(down, old), _parameter(up, old)
        if bias is not None:
            new.up.bias = _parameter(bias, old)
        pairs.append((old, new.train(old.training)))
    return pairs


def _put(module: nn.Module, pairs: Iterable[tuple[nn.Module, nn.Module]]) -> None:
    """Put new modules in the places of old ones: under all their names, and in the plain lists
    that some models keep beside and run (Mask2Former's heads)."""
    new = dict(pairs)
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # named_children would skip a twin
            if child in new:
                setattr(parent, name, new[child])
        for value in vars(parent).values():
            if type(value) is list:
                for i, item in enumerate(value):
                    if isinstance(item, nn.Module) and item in new:
                        value[i] = new[item]


def replace_empty(module: nn.Module, ranks: Mapping[str, int]) -> None:
    """Put uninitialised `LowRankLinear` of the given ranks in place, to be filled from a file."""
    factors = {}
    for name, rank in ranks.items():
        described = _describe(submodule(module, name))
        if described is None or described[2] is not None:
            raise RequestError(f"{name}: not a layer that can be factorised in this model")
        out, in_ = described[1]
        old = submodule(module, name)
        weight = cast(Tensor, old.weight)
        bias = getattr(old, "bias", None)
        factors[name] = (
            weight.new_empty(rank, in_),
            weight.new_empty(out, rank),
            None if bias is None else weight.new_empty(out),
        )
    replace(module, factors)


def fold(module: nn.Module) -> nn.Module:
    """Turn every `LowRankLinear` back into a dense ``nn.Linear`` of the same map, in place."""
    pairs: list[tuple[nn.Module, nn.Module]] = []
    for low in low_rank_layers(module).values():
        bias = low.bias
        dense = nn.Linear(low.in_features, low.out_features, bias is not None, device="meta")
        dense.weight = nn.Parameter((low.up.weight @ low.down.weight).detach())
        if bias is not None:
            dense.bias = nn.Parameter(bias.detach().clone())
        pairs.append((low, dense.train(low.training)))
    _put(module, pairs)
    return module


def low_rank_layers(module: nn.Module) -> dict[str, LowRankLinear]:
    """Name → layer for every `LowRankLinear` in the module."""
    return {n: m for n, m in module.named_modules() if isinstance(m, LowRankLinear)}


def places(module: nn.Module) -> dict[str, nn.Module]:
    """Name → the very module, of all linear maps, dense and low-rank."""
    layers = {layer.name: layer.module for layer in find_layers(module)}
    return layers | dict(low_rank_layers(module))


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a dense layer as out × in, detached."""
    described = _describe(layer)
    if described is None:
        raise RequestError(f"{type(layer).__name__}: not a linear layer")
    return Layer("", layer, described[1], described[0]).weight


def submodule(module: nn.Module, name: str) -> nn.Module:
    """``module.get_submodule`` with an error that names the layer."""
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise RequestError(f"{name}: the model has no such layer") from None


def _describe(m: nn.Module) -> tuple[str, tuple[int, int], str | None] | None:
    """(kind, (out, in), reason why it cannot be factorised) of a linear map, else None."""
    if isinstance(m, LowRankLinear):
        return None
    if isinstance(m, nn.Linear):
        # A subclass that computes something else with its weight is not the map we know.
        reason = None if _is_plain(m) else f"{type(m).__name__} has a forward of its own"
        return "linear", (m.out_features, m.in_features), reason
    weight = getattr(m, "weight", None)
    if type(m).__name__ == "Conv1D" and hasattr(m, "nf") and isinstance(weight, Tensor):
        return "conv1d", (weight.shape[1], weight.shape[0]), None
    if isinstance(m, nn.Conv2d | nn.Conv1d) and set(m.kernel_size) == {1} and m.groups == 1:
        return "conv1x1", (m.out_channels, m.in_channels), "1×1 convolution"
    in_proj = getattr(m, "in_proj_weight", None)
    if isinstance(m, nn.MultiheadAttention) and isinstance(in_proj, Tensor):
        return "in_proj", (in_proj.shape[0], in_proj.shape[1]), "fused in_proj"
    return None


def _experts(m: nn.Module) -> Iterator[tuple[str, Tensor, str]]:
    """(name, parameter [experts, a, b], reason) of what holds the weights of a mixture's experts
    in one piece, as transformers' do; their product is one grouped call."""
    count = getattr(m, "num_experts", None)
    for name, parameter in m.named_parameters(recurse=False):
        if isinstance(count, int) and parameter.ndim == 3 and len(parameter) == count:
            yield name, parameter, "experts fused in one parameter"


def _is_plain(m: nn.Linear) -> bool:
    """Whether a linear layer computes what ``nn.Linear`` does. A forward of a subclass's own
    (Falcon's) is tried on a small copy."""
    if type(m).forward is nn.Linear.forward:
        return True
    if set(m._parameters) != {"weight", "bias"} or m._buffers or m._modules:
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator, device="cpu") for shape in ((2, 5), (3, 5), (3,))
    )
    small = copy.copy(m)
    given = {"weight": weight, "bias": None if m.bias is None else bias}
    small.__dict__ |= {"_parameters": given, "in_features": 5, "out_features": 3}
    try:
        with torch.no_grad():
            found = small.forward(x)
    except Exception:  # whatever a forward that we don't know may raise
        return False
    wanted = F.linear(x, weight, given["bias"])
    return isinstance(found, Tensor) and torch.allclose(found, wanted, atol=1e-5)


def _within(name: str, roots: Collection[str]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def _parameter(tensor: Tensor, like: nn.Module) -> nn.Parameter:
    old = cast(Tensor, like.weight)
    return nn.Parameter(tensor.to(old.device, old.dtype).contiguous(), old.requires_grad)
