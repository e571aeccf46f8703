"""transformers' models of images with texts: CLIP and its kin, SigLIP, BLIP, ViLT."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.models.pairs import losses
from pelacli.models.pairs.repairs import repair
from pelacli.models.pairs.view import Encoded, Inputs, PairModel

_TEMPERATURE = 0.07  # of BLIP's features: transformers' class has lost the parameter


def view(module: nn.Module) -> PairModel | None:
    """The view of a transformers model; None where it isn't one of images with texts."""
    kind = type(module).__name__
    if kind in _VIEWS:
        return _VIEWS[kind](module)
    parts = ("get_image_features", "get_text_features", "logit_scale")
    return Contrastive(module) if all(hasattr(module, part) for part in parts) else None


def head(module: nn.Module) -> frozenset[str]:
    """Names of the heads that transformers doesn't set apart from the backbone."""
    kinds = _HEADS.get(type(module).__name__, ())
    present = {name for name, _ in module.named_modules()}
    return frozenset(name for name in kinds if name in present)


def marks(module: Any) -> tuple[int, int] | None:
    """(start, end) tokens of what the model's decoder writes; None where it has none."""
    if type(module).__name__ != "BlipForQuestionAnswering":
        return None
    config = module.config.text_config
    return int(config.bos_token_id), int(config.sep_token_id)


class _AsItIs(PairModel):
    """A model that does its tasks as it is, and can be made no other."""

    tasks: ClassVar[tuple[str, ...]] = ()

    def fit(
        self,
        task: str,
        *,
        classes: Sequence[str] | int | None = None,
        image_size: int | None = None,
    ) -> nn.Module:
        if task not in self.tasks:
            raise self._cannot(task)
        self._own_size(image_size)
        return cast(nn.Module, self.module)


class Contrastive(_AsItIs):
    """Two towers and a temperature: CLIP, and what has its methods (AltCLIP, ChineseCLIP, …)."""

    compares = True
    tasks = ("retrieval",)

    def output(self, inputs: Inputs) -> Tensor:
        """Both features side by side: how alike they are depends on the other pairs."""
        outputs = self.module(**inputs)
        return torch.cat([outputs["image_embeds"], outputs["text_embeds"]], -1)

    def encode_images(self, pixel_values: Tensor) -> Encoded:
        return Encoded(_unit(self.module.get_image_features(pixel_values=pixel_values)))

    def encode_texts(self, inputs: Inputs) -> Encoded:
        return Encoded(_unit(self.module.get_text_features(**_text(inputs))))

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        return cast(Tensor, losses.alike(images, texts) * self.module.logit_scale.exp())


class Sigmoid(Contrastive):
    """SigLIP: every pair is right or wrong by itself."""

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        return cast(Tensor, super().similarity(images, texts) + self.module.logit_bias)

    def contrast(self, images: Tensor, texts: Tensor, ids: Tensor) -> Tensor:
        same = ids[:, None] == losses.gathered(ids)[None, :]
        logits = self.similarity(images, losses.gathered(texts))
        return losses.sigmoid(logits, same)


class BlipMatching(_AsItIs):
    """BLIP for retrieval. Its text encoder reads alone, or sees the image in every layer."""

    compares = matches = True
    tasks = ("retrieval", "grounding")

    def output(self, inputs: Inputs) -> Tensor:
        images, texts = self.encode_images(inputs["pixel_values"]), self.encode_texts(inputs)
        fused = self._fuse(images, texts)[:, 0]
        assert images.features is not None
        assert texts.features is not None
        return torch.cat([images.features, texts.features, fused], -1)

    def encode_images(self, pixel_values: Tensor) -> Encoded:
        states = self.module.vision_model(pixel_values=pixel_values).last_hidden_state
        return Encoded(_unit(self.module.vision_proj(states[:, 0])), states)

    def encode_texts(self, inputs: Inputs) -> Encoded:
        """Matching reads the words again, so their states are the words."""
        states = self.module.text_encoder(**_text(inputs)).last_hidden_state
        features = _unit(self.module.text_proj(states[:, 0]))
        return Encoded(features, inputs["input_ids"], inputs["attention_mask"])

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        return losses.alike(images, texts, _TEMPERATURE)

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        return cast(Tensor, self.module.itm_head(self._fuse(images, texts)[:, 0]))

    def _fuse(self, images: Encoded, texts: Encoded) -> Tensor:
        outputs = self.module.text_encoder(
            input_ids=texts.states,
            attention_mask=texts.mask,
            encoder_hidden_states=images.states,
        )
        return cast(Tensor, outputs.last_hidden_state)

    @contextmanager
    def attention_maps(self, layer: int) -> Iterator[list[Tensor]]:
        layers = self.module.text_encoder.encoder.layer
        if not 0 <= layer < len(layers):
            raise RequestError(
                f"layer {layer}: has no cross-attention; choose one of 0 to {len(layers) - 1}"
            )
        maps: list[Tensor] = []
        hook = layers[layer].crossattention.self.register_forward_hook(
            lambda _module, _args, output: maps.append(output[1])
        )
        try:
            yield maps
        finally:
            hook.remove()


class BlipAnswers(_AsItIs):
    """BLIP for questions: a decoder writes answers under the fused question."""

    answers = "words"
    tasks = ("vqa",)

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        repair(module)

    def output(self, inputs: Inputs) -> Tensor:
        """Logits [B, V] of the answers' words, their mean."""
        mask = inputs["decoder_attention_mask"]
        logits = self.decode(inputs["decoder_input_ids"], mask, *self.read(inputs))
        weight = mask[..., None].to(logits.dtype)
        return (logits * weight).sum(1) / weight.sum(1).clamp_min(1)

    def read(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        image = self.module.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state
        states = self.module.text_encoder(**_text(inputs), encoder_hidden_states=image)
        return states.last_hidden_state, inputs["attention_mask"]

    def decode(self, ids: Tensor, mask: Tensor, states: Tensor, states_mask: Tensor) -> Tensor:
        outputs = self.module.text_decoder(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=states,
            encoder_attention_mask=states_mask,
            use_cache=False,
        )
        return cast(Tensor, outputs.logits)


class Vilt(PairModel):
    """ViLT: one encoder over words and patches together, and a head on its first token."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        repair(module)
        self.matches = hasattr(module, "rank_output")
        self.answers = "classes" if hasattr(module, "classifier") else None

    def output(self, inputs: Inputs) -> Tensor:
        outputs = self.module(**inputs)
        return cast(Tensor, outputs["logits" if "logits" in outputs else "pooler_output"])

    def fit(
        self,
        task: str,
        *,
        classes: Sequence[str] | int | None = None,
        image_size: int | None = None,
    ) -> nn.Module:
        model_class = {
            "retrieval": transformers.ViltForImageAndTextRetrieval,
            "vqa": transformers.ViltForQuestionAnswering,
            "entailment": transformers.ViltForQuestionAnswering,
        }.get(task)
        if model_class is None:
            raise self._cannot(task)
        config = self.module.config
        if task == "retrieval":
            return cast(
                nn.Module, self.module if self.matches else self._around(model_class, config)
            )
        names = [str(i) for i in range(classes)] if isinstance(classes, int) else classes
        if self.answers and names in (None, self.classes):
            return cast(nn.Module, self.module)
        if not names:
            raise RequestError("the answers are unknown; give task_args.answers, a JSON list")
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
        return self._around(model_class, config)

    def _around(self, model_class: Any, config: Any) -> nn.Module:
        """A model of another kind, with a fresh head, around this one's encoder."""
        shallow = copy.deepcopy(config)
        shallow.num_hidden_layers = 0
        module, encoder = model_class(shallow), getattr(self.module, "vilt", self.module)
        if encoder.pooler is None:
            encoder.pooler = module.vilt.pooler
        module.vilt, module.config = encoder, config
        return cast(nn.Module, module.to(next(encoder.parameters()).device).eval())

    @property
    def classes(self) -> list[str]:
        names: Mapping[int, str] = self.module.config.id2label
        return [names[number] for number in sorted(names)]

    def classify(self, inputs: Inputs) -> Tensor:
        return cast(Tensor, self.module(**inputs)["logits"])

    # Every pair is a pass through the whole encoder, so nothing but the patches comes before it.

    def encode_images(self, pixel_values: Tensor) -> Encoded:
        size = (len(pixel_values), *pixel_values.shape[-2:])
        mask = torch.ones(size, device=pixel_values.device)
        states, mask, _ = self.module.vilt.embeddings.visual_embed(
            pixel_values, mask, max_image_length=-1
        )
        return Encoded(None, states, mask)

    def encode_texts(self, inputs: Inputs) -> Encoded:
        return Encoded(None, inputs["input_ids"], inputs["attention_mask"])

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        outputs = self.module(
            input_ids=texts.states,
            attention_mask=texts.mask,
            image_embeds=images.states,
            pixel_mask=images.mask,
        )
        score = outputs["logits"]
        return torch.cat([torch.zeros_like(score), score], 1)


_VIEWS: dict[str, type[PairModel]] = {
    "SiglipModel": Sigmoid,
    "BlipForImageTextRetrieval": BlipMatching,
    "BlipForQuestionAnswering": BlipAnswers,
    "ViltModel": Vilt,
    "ViltForMaskedLM": Vilt,
    "ViltForQuestionAnswering": Vilt,
    "ViltForImageAndTextRetrieval": Vilt,
}
_HEADS = {
    "CLIPModel": ("visual_projection", "text_projection"),
    "BlipForImageTextRetrieval": ("vision_proj", "text_proj", "itm_head"),
    "BlipForQuestionAnswering": ("text_decoder.cls",),
}


def _text(inputs: Inputs) -> dict[str, Tensor]:
    return {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}


def _unit(output: Any) -> Tensor:
    """Features [B, E] at length one, from a tensor or from what a tower returns."""
    features = output if isinstance(output, Tensor) else output.pooler_output
    return F.normalize(features, dim=-1)
