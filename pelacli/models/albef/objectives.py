"""What ALBEF learns from: contrast, matching, masked words; answers and classes downstream.

Li et al., NeurIPS 2021, sections 3.2 and 3.3; the formulas are those of the authors' code. Each
objective takes the soft targets of `momentum` copies where the network has some, and does without
where it has none (in an evaluation, say).

A batch holds "inputs" (``pixel_values`` [B, 3, H, W], ``input_ids`` and ``attention_mask``
[B, T]). For masked words also ``masked_ids`` [B, T] and ``masked_labels`` [B, T], the hidden word
or -100: masks are drawn with the batch, so teacher and student see the same. ``ids`` [B] may say
which pairs show the same image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pelacli.models.albef import momentum
from pelacli.models.albef.momentum import Momentum
from pelacli.models.albef.network import Albef
from pelacli.models.pairs.losses import alike

Batch = Mapping[str, Any]
COLDEST, HOTTEST = 0.001, 0.5  # of the temperature, as ALBEF bounds it


@dataclass
class Pairs:
    """What the passes over a batch of pairs give.

    Attributes:
        image: [B, P, D] states of the images.
        text: [B, T, D] states of the texts by themselves.
        masked: [B, T, D] fused states of the masked texts; None where the batch has no masks.
    """

    image: Tensor
    text: Tensor
    masked: Tensor | None


def passes(network: Albef, batch: Batch) -> Pairs:
    """The passes whose features PELA distils: image, text, and masked text under the image."""
    inputs = batch["inputs"]
    mask = inputs["attention_mask"]
    image = network.embed_images(inputs["pixel_values"])
    text = network.embed_texts(inputs["input_ids"], mask)
    masked = None
    if "masked_ids" in batch:
        masked = network.fuse(network.embed_texts(batch["masked_ids"], mask), mask, image)
    return Pairs(image, text, masked)


def pretraining(network: Albef, pairs: Pairs, batch: Batch) -> dict[str, Tensor]:
    """The three losses: "contrast", "matching" and, where words are masked, "words".

    In training mode the momentum copies take a step and the queues remember the batch.
    """
    teacher, alpha, image_slow = _slow_start(network, batch)
    contrast, to_text, to_image = _contrast(network, pairs, batch, teacher, alpha, image_slow)
    results = {
        "contrast": contrast,
        "matching": _matching(network, pairs, batch, to_text, to_image),
    }
    if pairs.masked is not None:
        logits = network.text_encoder.words(pairs.masked)
        soft = None
        if teacher is not None and image_slow is not None and alpha:
            with torch.no_grad():
                mask = batch["inputs"]["attention_mask"]
                text = teacher.network.embed_texts(batch["masked_ids"], mask)
                fused = teacher.network.fuse(text, mask, image_slow)
                soft = teacher.network.text_encoder.words(fused)
        results["words"] = words_loss(logits, batch["masked_labels"], soft, alpha)
    return results


def entailment(network: Albef, batch: Batch, logits: Tensor | None = None) -> Tensor:
    """Cross-entropy of ``labels`` [B], blended with the copies' opinion.

    Args:
        logits: of the batch, where the pass was made already.
    """
    teacher, alpha, image_slow = _slow_start(network, batch)
    inputs = batch["inputs"]
    if logits is None:
        logits = network(**inputs)["logits"]
    hard = F.cross_entropy(logits.float(), batch["labels"])
    if teacher is None or image_slow is None or not alpha:
        return hard
    with torch.no_grad():
        mask = inputs["attention_mask"]
        text = teacher.network.embed_texts(inputs["input_ids"], mask)
        soft = teacher.network.cls_head(teacher.network.fuse(text, mask, image_slow)[:, 0])
    return (1 - alpha) * hard + alpha * F.cross_entropy(logits.float(), soft.float().softmax(1))


def answers(network: Albef, batch: Batch, logits: Tensor | None = None) -> Tensor:
    """The decoder's loss on answers: each one's summed over its words and weighted, per question.

    The batch has ``answer_ids`` and ``answer_mask`` [N, A] (each from the start token to the end
    token), ``answer_of`` [N], the question that each answers, and ``answer_weights`` [N].

    Args:
        logits: [N, A, V] of the answers' next words, where the pass was made already.
    """
    teacher, alpha, image_slow = _slow_start(network, batch)
    inputs, of = batch["inputs"], batch["answer_of"]
    mask, ids, answer_mask = inputs["attention_mask"], batch["answer_ids"], batch["answer_mask"]
    if logits is None:
        fused = network(**inputs)["last_hidden_state"]
        logits = network.decode(ids, answer_mask, fused[of], mask[of])
    logits = logits[:, :-1]
    labels = ids[:, 1:].masked_fill(answer_mask[:, 1:] == 0, -100)
    soft = None
    if teacher is not None and image_slow is not None and alpha:
        with torch.no_grad():
            text = teacher.network.embed_texts(inputs["input_ids"], mask)
            seen = teacher.network.fuse(text, mask, image_slow)
            soft = teacher.network.decode(ids, answer_mask, seen[of], mask[of])[:, :-1]
    each = words_loss(logits, labels, soft, alpha, reduce=False).sum(1)
    weights: Tensor = batch["answer_weights"]
    return (each * weights).sum() / len(mask)


def words_loss(
    logits: Tensor, labels: Tensor, soft: Tensor | None, alpha: float, *, reduce: bool = True
) -> Tensor:
    """Cross-entropy of words: (1 − alpha) with the true ones, alpha with the soft ones.

    Args:
        logits: [..., V]; ``soft`` the same, of the momentum copies.
        labels: [...] word numbers, -100 where there is nothing to learn.
        reduce: mean over the positions with a word (0 where there are none); else one loss for
            each position, 0 where there is nothing to learn.
    """
    labelled = labels != -100
    predicted, targets = logits[labelled].float(), labels[labelled]
    loss = F.cross_entropy(predicted, targets, reduction="none")
    if soft is not None and alpha:
        theirs = soft[labelled].float().softmax(-1)
        loss = (1 - alpha) * loss + alpha * F.cross_entropy(predicted, theirs, reduction="none")
    if reduce:
        return loss.sum() / max(1, len(loss))
    return torch.zeros(labels.shape, device=loss.device).masked_scatter(labelled, loss)


def contrast_loss(similar: Tensor, same: Tensor, soft: Tensor | None, alpha: float) -> Tensor:
    """Cross-entropy of similarities [B, K] with who belongs together.

    Args:
        same: [B, K] true where sample and key belong together; targets are spread over these.
        soft: [B, K] similarities as the momentum copies see them.
    """
    targets = same.float() / same.sum(1, keepdim=True)
    if soft is not None and alpha:
        targets = alpha * soft.softmax(1) + (1 - alpha) * targets
    return F.cross_entropy(similar, targets)


def hard_negatives(similar: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """For each sample another one that does not belong to it, the likelier the more similar.

    Args:
        similar: [B, B] similarities; ``same`` [B, B] who belongs together.

    Returns:
        (samples [N] that have a negative, their negatives [N]). N is below B only where all of
        the batch belongs to a sample.
    """
    weights = similar.float().softmax(1).clamp_min(1e-12).masked_fill(same, 0)
    rows = weights.sum(1).nonzero()[:, 0]
    if not len(rows):
        return rows, rows
    return rows, torch.multinomial(weights[rows], 1)[:, 0]


def _slow_start(network: Albef, batch: Batch) -> tuple[Momentum | None, float, Tensor | None]:
    """The copies, moved on in training mode; alpha; and their states of the images."""
    teacher = momentum.of(network)
    if teacher is None:
        return None, 0.0, None
    alpha = teacher.alpha
    images = batch["inputs"]["pixel_values"]
    if network.training:
        teacher.follow(network, len(images))
    with torch.no_grad():
        return teacher, alpha, teacher.network.embed_images(images)


def _contrast(
    network: Albef,
    pairs: Pairs,
    batch: Batch,
    teacher: Momentum | None,
    alpha: float,
    image_slow: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, image-to-text, text-to-image similarities [B, B] in the batch)."""
    if network.training:
        with torch.no_grad():
            network.temp.clamp_(COLDEST, HOTTEST)
    image, text = network.image_features(pairs.image), network.text_features(pairs.text)
    ids, count = batch.get("ids"), len(image)
    same = _together(ids, ids, count).to(image.device)
    if teacher is None or image_slow is None:
        to_text = alike(image, text, network.temp)
        to_image = to_text.T
        loss = contrast_loss(to_text, same, None, 0) + contrast_loss(to_image, same, None, 0)
        return loss / 2, to_text.detach(), to_image.detach()
    with torch.no_grad():
        inputs = batch["inputs"]
        text_slow = teacher.network.embed_texts(inputs["input_ids"], inputs["attention_mask"])
        image_keys = teacher.network.image_features(image_slow)
        text_keys = teacher.network.text_features(text_slow)
        images, texts = (
            torch.cat([keys, queue.to(keys.dtype)])
            for keys, queue in ((image_keys, teacher.images), (text_keys, teacher.texts))
        )
        same_all = torch.cat([same, _together(ids, teacher.ids, count)], 1)
        soft_text = alike(image_keys, texts, network.temp)
        soft_image = alike(text_keys, images, network.temp)
    to_text, to_image = alike(image, texts, network.temp), alike(text, images, network.temp)
    loss = contrast_loss(to_text, same_all, soft_text, alpha)
    loss = (loss + contrast_loss(to_image, same_all, soft_image, alpha)) / 2
    if network.training:
        teacher.remember(image_keys, text_keys, ids)
    return loss, to_text[:, :count].detach(), to_image[:, :count].detach()


def _together(ids: Tensor | None, keys: Tensor | None, count: int) -> Tensor:
    """[count, keys] which sample belongs to which key; without ids each to its own place."""
    if ids is not None and keys is not None:
        return ids[:, None] == keys[None]
    if keys is not None:  # a queue, of which nothing is known
        return torch.zeros(count, len(keys), dtype=torch.bool, device=keys.device)
    return torch.eye(count, dtype=torch.bool)


def _matching(
    network: Albef, pairs: Pairs, batch: Batch, to_text: Tensor, to_image: Tensor
) -> Tensor:
    """Cross-entropy of true pairs, and of each text and each image with a hard negative."""
    mask, ids = batch["inputs"]["attention_mask"], batch.get("ids")
    same = _together(ids, ids, len(mask)).to(mask.device)
    texts, wrong_image = hard_negatives(to_image, same)
    images, wrong_text = hard_negatives(to_text, same)
    # In one pass: the layers see pairs, and do not mix them.
    text = torch.cat([pairs.text, pairs.text[texts], pairs.text[wrong_text]])
    image = torch.cat([pairs.image, pairs.image[wrong_image], pairs.image[images]])
    logits = network.match(text, torch.cat([mask, mask[texts], mask[wrong_text]]), image)
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[: len(mask)] = 1
    return F.cross_entropy(logits.float(), labels)
