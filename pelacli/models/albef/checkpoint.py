"""The original ALBEF checkpoints: their keys, and the shapes that tell what they are of.

The files hold the network, its momentum copies and its queues, often beside the optimizer's state.
Only the network is read. Nothing is unpickled: a ``.pth`` file goes through torch's weights-only
loader.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.models import checkpoint_file
from pelacli.models.albef import config as albef_config
from pelacli.models.albef.config import PARTS
from pelacli.models.albef.network import Albef, resampled
from pelacli.models.weight_files import StoredTensor, load_strictly
from pelacli.models.without_values import on_meta
from pelacli.models.wrapped_names import Unwrapping, attempts

_DROPPED = re.compile(
    r"[a-z_]+_m\.|(image_queue|text_queue|idx_queue|queue_ptr|ptr_queue)$|.*position_ids$"
)
_TIED = re.compile(r"(text_encoder|text_decoder)\.cls\.predictions\.decoder\.(weight|bias)$")
_FIRST = "visual_encoder.pos_embed"  # which every variant has
_HEAD_WIDTH = 64  # of ALBEF's attention, image and text alike


def open_file(file: Path, settings: Mapping[str, Any]) -> Albef:
    """The network that a file holds.

    Args:
        settings: of `Config`, in place of what the shapes tell; ``image_size`` resamples the
            position embeddings, as ALBEF does from 256 to 384 pixels.

    Raises:
        RequestError: the file can't be read, or its tensors aren't ALBEF's; the first is named.
    """
    stored, unwrapping = _unwrapped(checkpoint_file.read(file))
    tensors = from_original(stored, str(file))
    described = describe(tensors, str(file))
    config = albef_config.from_json({**described, **settings}, "model_args")
    with on_meta():
        network = Albef(config)
    fill(network, tensors, file)
    if unwrapping is not None:
        unwrapping.say(file)
    return network


def _unwrapped(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Unwrapping | None]:
    """The tensors by ALBEF's own names, and what was taken off for that."""
    for unwrapping in () if _FIRST in tensors else attempts(tensors):
        if _FIRST in unwrapping.names.values():
            return {new: tensors[old] for old, new in unwrapping.names.items()}, unwrapping
    return tensors, None


def from_original(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Original names → ours. Momentum copies, queues and what is tied are left out.

    Raises:
        RequestError: a tied tensor isn't what it is tied to.
    """
    renamed = {}
    for name, tensor in tensors.items():
        if not _DROPPED.match(name):
            # Fine-tuned checkpoints have no head above their text encoder, and no level for it.
            renamed[
                re.sub(r"^text_encoder\.(?=embeddings|encoder)", "text_encoder.bert.", name)
            ] = tensor
    for name in [name for name in renamed if _TIED.match(name)]:
        side, _, kind = name.partition(".cls.predictions.decoder.")
        owner = {"weight": f"{side}.bert.embeddings.word_embeddings.weight",
                 "bias": f"{side}.cls.predictions.bias"}[kind]  # fmt: skip
        if owner in renamed and not torch.equal(renamed[owner], renamed[name]):
            raise RequestError(f"{where}: {name} differs from {owner}, to which ALBEF ties it")
        if owner in renamed:
            del renamed[name]
    return renamed


def to_original(network: Albef) -> dict[str, Tensor]:
    """The network's tensors under the original names, tied ones included: what ALBEF's own scripts
    would load. Low-rank layers keep their ``down`` and ``up``."""
    renamed = {}
    plain = not hasattr(network.text_encoder, "cls")
    for name, tensor in network.state_dict().items():
        if not name.startswith("momentum."):
            name = name.replace("text_encoder.bert.", "text_encoder.", 1) if plain else name
            renamed[name] = tensor
    return renamed


def describe(tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """Settings of `Config`, as the shapes tell them.

    Raises:
        RequestError: the tensors aren't those of an ALBEF.
    """
    positions = _need(tensors, _FIRST, where)
    patch = _need(tensors, "visual_encoder.patch_embed.proj.weight", where)
    words = _need(tensors, "text_encoder.bert.embeddings.word_embeddings.weight", where)
    side = math.isqrt(positions.shape[1] - 1)
    settings: dict[str, Any] = {
        "variant": _variant(tensors, where),
        "image_size": side * patch.shape[-1],
        "patch_size": patch.shape[-1],
        "vision_width": positions.shape[-1],
        "vision_depth": _depth(tensors, "visual_encoder.blocks."),
        "vision_heads": max(1, positions.shape[-1] // _HEAD_WIDTH),
        "vocab_size": words.shape[0],
        "text_width": words.shape[1],
        "text_depth": _depth(tensors, "text_encoder.bert.encoder.layer."),
        "text_heads": max(1, words.shape[1] // _HEAD_WIDTH),
    }
    first = "text_encoder.bert.encoder.layer.0.intermediate.dense.weight"
    settings["text_hidden"] = _need(tensors, first, where).shape[0]
    table = "text_encoder.bert.embeddings.position_embeddings.weight"
    settings["max_positions"] = _need(tensors, table, where).shape[0]
    crossing = [
        int(match[1])
        for name in tensors
        if (match := re.match(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.crossattention", name))
    ]
    settings["fusion_layer"] = min(crossing, default=settings["text_depth"])
    if "vision_proj.weight" in tensors:
        settings["embed_dim"] = tensors["vision_proj.weight"].shape[0]
    if "cls_head.2.weight" in tensors:
        settings["num_classes"] = tensors["cls_head.2.weight"].shape[0]
    # Where there is no decoder yet, it will be made of the layers that see the image.
    decoder = _depth(tensors, "text_decoder.bert.encoder.layer.")
    settings["decoder_depth"] = decoder or max(1, settings["text_depth"] - settings["fusion_layer"])
    return settings


def fill(network: Albef, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Fill the network, which may be on "meta", with all of the tensors. Position embeddings of
    another image size are resampled.

    Raises:
        RequestError: a tensor is missing, unknown or of another shape; the message names it.
    """
    network.tie()
    tensors = dict(tensors)
    if _FIRST in tensors:
        tensors[_FIRST] = resampled(tensors[_FIRST], network.config.patches)
    copies = (
        StoredTensor(file, name, tensor if tensor.is_meta or tensor.is_sparse else tensor.clone())
        for name, tensor in tensors.items()
    )
    load_strictly(network, copies, file, hint=f"; is it ALBEF's {network.config.variant!r}?")
    fill_buffers(network)


def fill_buffers(network: nn.Module) -> None:
    """Give the position tables, which no checkpoint holds, their values after a build on "meta"."""
    for part in network.modules():
        ids = getattr(part, "position_ids", None)
        if isinstance(ids, Tensor) and ids.is_meta:
            part.position_ids = torch.arange(ids.shape[-1]).expand(1, -1)
            part.token_type_ids = torch.zeros(ids.shape, dtype=torch.long)


def _variant(tensors: Mapping[str, Tensor], where: str) -> str:
    if any(name.startswith("text_decoder.") for name in tensors):
        return "vqa"
    if "cls_head.0.weight" in tensors:
        return "entailment"
    if "itm_head.weight" in tensors:
        words = any(name.startswith("text_encoder.cls.") for name in tensors)
        return "pretrain" if words else "retrieval"
    raise RequestError(f"{where}: none of ALBEF's variants ({', '.join(PARTS)}) has these tensors")


def _depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    numbers = {name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)}
    return len(numbers)


def _need(tensors: Mapping[str, Tensor], name: str, where: str) -> Tensor:
    if name not in tensors:
        raise RequestError(f"{where}: lacks {name}; it is no ALBEF checkpoint")
    return tensors[name]
