"""What sentence-transformers does to a sentence's vector after pooling: its modules with weights,
read from their folders beside the model. pela applies them, and trains none of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.models.weight_files import stored_tensors
from pelacli.system import json_files, own_files

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Dense:
    """``activation(x W^T + b)``, and the input added to it where there is a residual connection,
    through a projection where one is given. [B, in] → [B, out]."""

    weight: Tensor
    bias: Tensor | None
    activation: nn.Module
    residual: bool = False
    projection: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x)
        y: Tensor = self.activation(F.linear(x, self.weight.to(x), bias))
        if not self.residual:
            return y
        return y + (x if self.projection is None else F.linear(x, self.projection.to(x)))


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """[B, C] → [B, C]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight.to(x), self.bias.to(x))


def normalise(x: Tensor) -> Tensor:
    """[B, C] → the same at length 1."""
    return F.normalize(x, dim=-1)


def dense(directory: Path, folder: str) -> Dense:
    """The module of a folder, as its config.json describes it.

    Raises:
        RequestError: its weights are missing or don't fit, it works on something else than the
            sentence's vector, or its activation is none of torch's.
    """
    file = directory / folder / "config.json"
    config = json_files.read_as(dict, file, "restore the file")
    reads = (config.get("module_input_name"), config.get("module_output_name"))
    if any(name not in (None, "sentence_embedding") for name in reads):
        raise RequestError(f"{file}: pela applies Dense to a sentence's vector only, not to tokens")
    tensors = _tensors(directory, folder)
    shape = (config.get("out_features"), config.get("in_features"))
    weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
    if weight is None or tuple(weight.shape) != shape or (bias is None) == config.get("bias", True):
        raise RequestError(f"{file}: model.safetensors beside it holds another layer; restore both")
    residual = bool(config.get("use_residual", False))
    projection = tensors.get("residual.weight")
    if residual and shape[0] != shape[1] and projection is None:
        raise RequestError(f"{file}: model.safetensors beside it lacks residual.weight; restore it")
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = (
        getattr(nn, name.rpartition(".")[2], None) if name.startswith("torch.nn.") else None
    )
    if not (isinstance(activation, type) and issubclass(activation, nn.Module)):
        raise RequestError(f"{file}: activation_function {name!r} is none of torch.nn's")
    return Dense(weight, bias, activation(), residual, projection)


def layer_norm(directory: Path, folder: str) -> LayerNorm:
    """The module of a folder.

    Raises:
        RequestError: its weights are missing or don't fit.
    """
    tensors = _tensors(directory, folder)
    if tensors.keys() != {"norm.weight", "norm.bias"}:
        file = directory / folder / "model.safetensors"
        raise RequestError(f"{file}: does not hold norm.weight and norm.bias; restore the file")
    return LayerNorm(tensors["norm.weight"], tensors["norm.bias"])


def _tensors(directory: Path, folder: str) -> dict[str, Tensor]:
    file = directory / folder / "model.safetensors"
    if not file.is_file():
        raise RequestError(
            f"{file}: is missing, and pela never unpickles; save the model once more with "
            "sentence-transformers, which writes it, or restore the file"
        )
    own_files.check(directory, file)
    return {name: tensor for _, name, tensor in stored_tensors([file])}
