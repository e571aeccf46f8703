"""ALBEF behind the view that the tasks on images with texts work on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pelacli.models.albef import attention, momentum, network, objectives
from pelacli.models.outputs import main_output
from pelacli.models.pairs import view
from pelacli.models.pairs.losses import alike
from pelacli.models.pairs.view import Batch, Encoded, Inputs

_VARIANTS = {"retrieval": "retrieval", "grounding": "retrieval", "vqa": "vqa",
             "entailment": "entailment"}  # fmt: skip


class PairModel(view.PairModel):
    """One ALBEF; what it can depends on its variant."""

    module: network.Albef

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.compares = self.matches = hasattr(module, "vision_proj")
        heads = {"vqa": "words", "entailment": "classes"}
        self.answers = heads.get(self.module.config.variant)

    def output(self, inputs: Inputs) -> Tensor:
        """Features and the fused class token where it compares; the mean logits of an answer's
        words where it writes; else its logits, or the fused text."""
        if self.compares:
            images, texts = self.encode_images(inputs["pixel_values"]), self.encode_texts(inputs)
            fused = self._fused(images, texts)[:, 0]
            sides = [side for side in (images.features, texts.features) if side is not None]
            return torch.cat([*sides, fused], -1)
        outputs = self.module(**inputs)
        if self.answers == "words" and "logits" in outputs:
            mask = inputs.get("decoder_attention_mask")
            words = main_output({"last_hidden_state": outputs["logits"]}, mask)
            return words if mask is not None else outputs["logits"].mean(1)
        return main_output(outputs, inputs["attention_mask"])

    def fit(
        self,
        task: str,
        *,
        classes: Sequence[str] | int | None = None,
        image_size: int | None = None,
    ) -> nn.Module:
        if task not in _VARIANTS:
            raise self._cannot(task)
        variant, config = _VARIANTS[task], self.module.config
        count = None
        if variant == "entailment":
            count = classes if isinstance(classes, int) else len(classes or []) or None
        same = variant == config.variant and count in (None, config.num_classes)
        if same and image_size in (None, config.image_size):
            return self.module
        return network.as_variant(self.module, variant, image_size=image_size, num_classes=count)

    def training(self, settings: Mapping[str, Any]) -> AbstractContextManager[Any]:
        return _momentum(self.module, settings)

    def encode_images(self, pixel_values: Tensor) -> Encoded:
        states = self.module.embed_images(pixel_values)
        return Encoded(self.module.image_features(states) if self.compares else None, states)

    def encode_texts(self, inputs: Inputs) -> Encoded:
        mask = inputs["attention_mask"]
        states = self.module.embed_texts(inputs["input_ids"], mask)
        return Encoded(self.module.text_features(states) if self.compares else None, states, mask)

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        return alike(images, texts, self.module.temp)

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        logits: Tensor = self.module.itm_head(self._fused(images, texts)[:, 0])
        return logits

    def retrieval_losses(
        self, images: Encoded, texts: Encoded, matched: Tensor | None, batch: Batch
    ) -> dict[str, Tensor]:
        """ALBEF's own, with its queues and soft targets while there are momentum copies."""
        assert images.states is not None
        assert texts.states is not None
        passes = objectives.Pairs(images.states, texts.states, None)
        return objectives.pretraining(self.module, passes, batch)

    def attention_maps(self, layer: int) -> AbstractContextManager[list[Tensor]]:
        return attention.attention_maps(self.module, layer)

    @property
    def classes(self) -> list[str]:
        return [str(number) for number in range(self.module.config.num_classes)]

    def classify(self, inputs: Inputs) -> Tensor:
        if self.answers != "classes":
            raise self._cannot("classify pairs")
        logits: Tensor = self.module(**inputs)["logits"]
        return logits

    def class_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return objectives.entailment(self.module, batch, logits)

    def read(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        if self.answers != "words":
            raise self._cannot("answer in words")
        images, texts = self.encode_images(inputs["pixel_values"]), self.encode_texts(inputs)
        return self._fused(images, texts), inputs["attention_mask"]

    def decode(self, ids: Tensor, mask: Tensor, states: Tensor, states_mask: Tensor) -> Tensor:
        return self.module.decode(ids, mask, states, states_mask)

    def answer_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return objectives.answers(self.module, batch, logits)

    def _fused(self, images: Encoded, texts: Encoded) -> Tensor:
        assert images.states is not None
        assert texts.states is not None
        assert texts.mask is not None
        return self.module.fuse(texts.states, texts.mask, images.states)


@contextmanager
def _momentum(module: network.Albef, settings: Mapping[str, Any]) -> Iterator[None]:
    if not settings["alpha"]:
        yield
        return
    momentum.attach(
        module,
        queue=settings["queue"],
        decay=settings["momentum"],
        weight=settings["alpha"],
        ramp=settings["ramp"],
    )
    try:
        yield
    finally:
        momentum.detach(module)
