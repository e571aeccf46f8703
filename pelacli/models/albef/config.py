"""What an ALBEF model looks like: its sizes and its variant, as JSON can hold them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pelacli.errors import RequestError
from pelacli.messages import did_you_mean

LIBRARY = "albef"  # under "pela_model" in config.json
# What each variant has beside the two encoders; see `network.Albef`.
PARTS = {
    "pretrain": ("vision_proj", "text_proj", "itm_head", "mlm_head"),
    "retrieval": ("vision_proj", "text_proj", "itm_head"),
    "entailment": ("cls_head",),
    "vqa": ("text_decoder",),
}


@dataclass(frozen=True)
class Config:
    """Sizes of the network; the defaults are ALBEF's own (Li et al., NeurIPS 2021).

    Attributes:
        variant: "pretrain" (both projections, the matching and the masked-word head), "retrieval"
            (the same without the masked-word head; grounding uses it too), "entailment" (a
            classifier on the fused text) or "vqa" (a decoder that writes answers).
        image_size: pixels a side.
        fusion_layer: the first text layer with cross-attention; those below see text only.
        decoder_depth: layers of the answer decoder.
        embed_dim: width of the space in which images and texts are compared.
        num_classes: of the entailment variant.
    """

    variant: str = "pretrain"
    image_size: int = 256
    patch_size: int = 16
    vision_width: int = 768
    vision_depth: int = 12
    vision_heads: int = 12
    vocab_size: int = 30522
    text_width: int = 768
    text_depth: int = 12
    text_heads: int = 12
    text_hidden: int = 3072
    max_positions: int = 512
    pad_token: int = 0
    dropout: float = 0.1
    fusion_layer: int = 6
    decoder_depth: int = 6
    embed_dim: int = 256
    num_classes: int = 3

    def __post_init__(self) -> None:
        if self.variant not in PARTS:
            raise RequestError(
                f"variant {self.variant!r}: ALBEF comes as {', '.join(PARTS)}; choose one"
            )
        for name, value in vars(self).items():
            least = 0 if name in ("fusion_layer", "pad_token", "dropout") else 1
            if name != "variant" and value < least:
                raise RequestError(f"{name} = {value}: must be at least {least}")
        for wide, by in (("image_size", "patch_size"), ("vision_width", "vision_heads"),
                         ("text_width", "text_heads")):  # fmt: skip
            if getattr(self, wide) % getattr(self, by):
                raise RequestError(
                    f"{wide} = {getattr(self, wide)}: must be a multiple of {by} = "
                    f"{getattr(self, by)}"
                )
        if self.fusion_layer > self.text_depth:
            raise RequestError(
                f"fusion_layer = {self.fusion_layer}: there are {self.text_depth} text layers"
            )

    @property
    def patches(self) -> int:
        """Patches along a side of the image."""
        return self.image_size // self.patch_size

    def to_json(self) -> dict[str, Any]:
        """The content of config.json."""
        return {"pela_model": LIBRARY, **vars(self)}


def from_json(values: Mapping[str, Any], where: str = "config.json") -> Config:
    """A configuration from config.json or from model_args.

    Raises:
        RequestError: a name that there is not, or a value of the wrong kind; ``where`` is named.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(Config)}
    settings = {name: value for name, value in values.items() if name != "pela_model"}
    for name, value in settings.items():
        if name not in kinds:
            hint = did_you_mean(name, kinds, before="; ")
            raise RequestError(f"{where}: ALBEF has no setting {name!r}{hint}")
        allowed = {"str": (str,), "int": (int,), "float": (int, float)}[str(kinds[name])]
        if not isinstance(value, allowed) or isinstance(value, bool):
            raise RequestError(f"{where}: {name} = {value!r}: expected {kinds[name]}")
    try:
        return Config(**settings)
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from None
