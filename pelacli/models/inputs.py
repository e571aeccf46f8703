"""What a sample looks like to a model, whichever library it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
        answers: whether it has an encoder for one text and a decoder for another.
        vocabulary: how many tokens it knows; None where that is not shown.
        padding: the token by which it knows padding, where the mask does not tell it; None: any
            does.
        padding_side: where padding stands; "left" for models that read their last position.
    """

    tokenizer: Any
    max_length: int
    fill: bool = False
    marks: tuple[int, int] | None = None
    classes: tuple[str, ...] | None = None
    causal: bool | None = None
    answers: bool = False
    vocabulary: int | None = None
    padding: int | None = None
    padding_side: str = "right"


@dataclass(frozen=True)
class PairInput:
    """What a model wants that sees an image and reads a text."""

    image: ImageInput
    text: TextInput


Inputs = ImageInput | TextInput | PairInput


def tokenizer_of(inputs: Inputs) -> Any:
    """The tokenizer of a model that reads texts; None without one."""
    text = inputs.text if isinstance(inputs, PairInput) else inputs
    return getattr(text, "tokenizer", None)
