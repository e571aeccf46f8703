"""How an exported model is called: its inputs and outputs by name, whatever library it is of.

::

    images                       pixel_values [B, C, H, W]
    texts                        input_ids, attention_mask, token_type_ids [B, N], those it takes

    a model with a head          logits
    an encoder                   last_hidden_state, pooler_output where it has one
    an encoder of sentences      last_hidden_state and sentence_embedding [B, D], pooled as its
                                 files say
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.models import prediction
from pelacli.models.hf import detectors
from pelacli.models.inputs import ImageInput, TextInput
from pelacli.models.opened import OpenModel

_TEXT = ("input_ids", "attention_mask", "token_type_ids")


class Call(nn.Module):
    """A model called by the names of its inputs, that gives its outputs by name.

    Args:
        module: the model.
        names: of the inputs that it takes.
    """

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = module
        self.names = names


class ImageCall(Call):
    """A model of images."""

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        if hasattr(self.model, "config"):
            return _outputs(self.model(pixel_values=pixel_values))
        y = self.model(pixel_values)
        return {"logits" if getattr(self.model, "num_classes", 1) else "features": y}


class TextCall(Call):
    """A model of texts. Keys and values of a decoder are not kept for a next token."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        given = zip(_TEXT, (input_ids, attention_mask, token_type_ids), strict=True)
        inputs = {name: value for name, value in given if value is not None}
        outputs = _outputs(self.model(**prediction.without_cache(self.model, inputs)))
        pooling = getattr(self.model, "pela_pooling", None)
        hidden = outputs.get("last_hidden_state")
        if pooling is None or hidden is None or attention_mask is None:
            return outputs
        return {
            "last_hidden_state": hidden,
            "sentence_embedding": pooling(hidden, attention_mask),
        }


class AnyCall(Call):
    """A model of any kind, by its main output: enough to compare two of one class."""

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {"output": prediction.predict(self.model, inputs)}


def of(opened: OpenModel) -> Call:
    """The call of an image or text model with plain outputs.

    Raises:
        RequestError: it is of another kind.
    """
    module = opened.module
    takes = inspect.signature(module.forward).parameters
    if opened.library not in ("timm", "transformers"):
        raise _other_kind(opened, "is of a class that neither timm nor transformers builds")
    sees = opened.library == "timm" or "pixel_values" in takes
    if sees and isinstance(opened.inputs, ImageInput) and not detectors.is_detector(module):
        return ImageCall(module, ("pixel_values",))
    if isinstance(opened.inputs, TextInput) and "input_ids" in takes:
        if opened.inputs.answers or "decoder_input_ids" in takes:
            raise _other_kind(opened, "has an encoder and a decoder")
        return TextCall(module, tuple(name for name in _TEXT if name in takes))
    kind = "finds objects" if detectors.is_detector(module) else "takes other inputs"
    raise _other_kind(opened, kind)


def of_any(opened: OpenModel) -> Call:
    """The call of a model of timm or transformers of any kind.

    Raises:
        RequestError: it is one of pela's own.
    """
    try:
        return of(opened)
    except RequestError:
        if opened.library != "transformers":
            raise
        return AnyCall(opened.module, ())


def _other_kind(opened: OpenModel, what: str) -> RequestError:
    return RequestError(
        f"{opened.ref}: {type(opened.module).__name__} {what}; exports hold classifiers of images "
        "or texts, encoders, and language models that predict the next or a masked token"
        + ("; --to dense takes it" if opened.library == "transformers" else "")
    )


def _outputs(result: Any) -> dict[str, Tensor]:
    """The tensors of what a model of transformers returns, by name."""
    if not isinstance(result, Mapping):
        return {"logits": result}
    return {name: value for name, value in result.items() if isinstance(value, Tensor)}
