"""What an opened model is, whichever library it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pelacli.manifest import SourceRecord
from pelacli.models.pooling import Pooling


@dataclass(frozen=True)
class ImageInput:
    """What an image model wants: size is (channels, height, width).

    Attributes:
        mask: whether it takes ``pixel_mask`` beside images that are padded to one size.
        labels: names of its classes, where its files tell them.
        fixed: whether its images are all of this size (timm's models), and of one size those of a
            detector around it.
    """

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    processor: Mapping[str, Any] | None = None  # preprocessor_config.json, where there is one
    mask: bool = False
    labels: tuple[str, ...] = ()
    fixed: bool = False


@dataclass(frozen=True)
class TextInput:
    """What a text model wants.

    Attributes:
        tokenizer: None where the model came without one.
        max_length: in tokens, the special ones included.
        fill: texts are padded to that length, as the model was trained (SigLIP reads its last
            position), and not just to the longest of a batch.
        marks: (start, end) tokens of what the model's decoder writes; None where it has none.
        classes: the model's own names of its classes, in the order of its outputs; None where it
            has no classes, or only numbers for them.
        causal: whether it predicts the next token (True) or masked ones (False); None where it
            has no output for tokens.
    """

    tokenizer: Any
    max_length: int
    fill: bool = False
    marks: tuple[int, int] | None = None
    classes: tuple[str, ...] | None = None
    causal: bool | None = None


@dataclass(frozen=True)
class PairInput:
    """What a model wants that sees an image and reads a text."""

    image: ImageInput
    text: TextInput


Inputs = ImageInput | TextInput | PairInput


@dataclass
class OpenModel:
    """A model, ready to run, with what is needed to write it down again.

    Attributes:
        module: the network, on the CPU, in eval mode (on "meta" where only its shape was asked).
        ref: what the user asked for.
        library: "timm", "transformers", or one of pela's own (`pelacli.models.opening`).
        config: becomes config.json of an artefact; the library can rebuild the dense network
            from it.
        carried: further files of the model's directory (processors, tokenizers), by relative path.
        source: where the weights came from.
        inputs: what a sample looks like.
        head: names of the output head's modules.
    """

    module: nn.Module
    ref: str
    library: str
    config: dict[str, Any]
    carried: dict[str, bytes]
    source: SourceRecord
    inputs: Inputs
    head: frozenset[str] = field(default_factory=frozenset)

    @property
    def params(self) -> int:
        """Parameters of the whole model; a shared one counts once."""
        return sum(p.numel() for p in self.module.parameters())


class Adapter(Protocol):
    """What the file of a library in `pelacli.models` offers, as functions."""

    def rebuild(self, directory: Path) -> nn.Module:
        """The dense architecture that config.json describes, its weights without values; buffers
        that no checkpoint holds have theirs."""

    def config(self, module: nn.Module) -> dict[str, Any]:
        """config.json, from which `rebuild` works."""

    def inputs(self, module: nn.Module, directory: Path | None) -> Inputs:
        """What a sample looks like, from the model's own files where there are any."""

    def example(self, module: nn.Module, inputs: Any) -> Tensor | dict[str, Tensor]:
        """A sample to count FLOPs at, as a batch of one."""

    def head(self, module: nn.Module) -> frozenset[str]:
        """Names of the modules that make the output and stay dense."""

    def num_classes(self, module: nn.Module) -> int | None:
        """Outputs of the classifier; None for a model without one."""

    def set_classes(self, module: nn.Module, num_classes: int) -> None:
        """Give the model a fresh classifier.

        Raises:
            RequestError: it has none that can be exchanged.
        """


class OwnAdapter(Adapter, Protocol):
    """What a model of pela's own offers beyond that."""

    def build(
        self,
        name: str,
        *,
        model_args: dict[str, Any],
        num_classes: int | None,
        weights: Path | None,
    ) -> nn.Module:
        """The model of this name.

        Args:
            weights: a checkpoint file; None: fresh weights.

        Raises:
            RequestError: arguments or weights that don't fit.
        """

    def open_directory(
        self, directory: Path, *, random: bool, num_classes: int | None
    ) -> nn.Module:
        """The dense model of a directory with config.json and weights."""


def predict(module: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
    """The model's main output for a batch.

    Logits where the model has a head (a detector's with the boxes beside them); else its embedding
    of the sample: pooled features, or of a text the last hidden states pooled as
    sentence-transformers' files beside the model say, else their mean over the tokens that are no
    padding. What that is for pairs of images and texts its family says (`pairs.PairModel.output`).

    Args:
        inputs: images [B, C, H, W], or the model's keyword arguments as tensors [B, ...].

    Returns:
        [B, ..., D], floating point.
    """
    if isinstance(inputs, Mapping) and "pixel_values" in inputs and "input_ids" in inputs:
        from pelacli.models import pairs

        view = pairs.find(module)
        if view is not None:
            return view.output(inputs)
    result = module(**inputs) if isinstance(inputs, Mapping) else module(inputs)
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return main_output(result, mask, getattr(module, "pela_pooling", None))


def main_output(result: Any, mask: Tensor | None = None, pooling: Pooling | None = None) -> Tensor:
    """The main tensor of what a model returned; see `predict`."""
    if isinstance(result, Tensor):
        return result
    if isinstance(result, Mapping):  # transformers' ModelOutput is one
        for key in ("logits", "logits_per_image", "pooler_output", "image_embeds"):
            # A text encoder's pooler is trained for next-sentence prediction, not for meaning.
            found = result.get(key)
            if isinstance(found, tuple | list) and found:  # one for each of several outputs
                found = found[0]
            if isinstance(found, Tensor) and not (key == "pooler_output" and mask is not None):
                boxes = result.get("pred_boxes") if key == "logits" else None
                return found if boxes is None else torch.cat([found, boxes.to(found.dtype)], -1)
        hidden = result.get("last_hidden_state")
        if isinstance(hidden, Tensor):
            if mask is None or mask.shape != hidden.shape[:2]:
                return hidden.flatten(1, -2).mean(1) if hidden.ndim == 3 else hidden
            return (pooling or Pooling())(hidden, mask)
    found = next(_tensors(result), None)
    if found is None:
        what = type(result).__name__
        raise TypeError(f"the model returned {what}, in which there is no tensor")
    return found


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in nested tuples, lists and mappings, in their order."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping | tuple | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def place(module: nn.Module, device: torch.device | str, channels_last: bool = False) -> nn.Module:
    """Move a module to a device, its convolutions in the wanted order of memory."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    return module.to(torch.device(device)).to(memory_format=order)


def to_device(
    value: Any,
    device: torch.device | str,
    channels_last: bool = False,
) -> Any:
    """Move a batch (tensors in dicts) to a device, images in the wanted order of memory.

    What is moved to the CPU has arrived there; other devices see to it that they wait.
    """
    if isinstance(value, Tensor):
        last = channels_last and value.ndim == 4
        order = torch.channels_last if last else torch.preserve_format
        to_accelerator = torch.device(device).type != "cpu"
        return value.to(device, non_blocking=to_accelerator, memory_format=order)
    if isinstance(value, Mapping):
        return {key: to_device(item, device, channels_last) for key, item in value.items()}
    return value
