"""What image–text models learn from, as pure functions: contrast, matching, words of answers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pelacli.system import processes


def alike(ours: Tensor, theirs: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """Features [B, E] and [N, E] → their products over the temperature, [B, N].

    Never in half precision: divided by a temperature of 0.07, its rounding errors are as large as
    the differences that soft targets teach."""
    with torch.autocast(ours.device.type, enabled=False):
        return _whole(ours) @ _whole(theirs).T / temperature


def soft(logits: Tensor, same: Tensor) -> Tensor:
    """Cross-entropy of rows that may have several right columns, which share the target equally.

    Args:
        logits: [B, N]; ``same`` [B, N], whether a column belongs to the row, at least one does.
    """
    right = same.to(torch.float32)
    return F.cross_entropy(logits.float(), right / right.sum(1, keepdim=True))


def sigmoid(logits: Tensor, same: Tensor) -> Tensor:
    """Each pair by itself, right or wrong; summed over columns, mean over rows. As in SigLIP (Zhai
    et al., ICCV 2023), where several columns may be right here."""
    signs = torch.where(same, 1.0, -1.0)
    return -F.logsigmoid(signs * logits.float()).sum(1).mean()


def matching(
    right: Tensor,
    match: Callable[[Tensor, Tensor], Tensor],
    to_text: Tensor | None,
    same: Tensor,
) -> Tensor:
    """Cross-entropy of true pairs, and of each image and each text with a negative.

    A negative is drawn in proportion to its likeness, so that it is hard (ALBEF, Li et al., NeurIPS
    2021); evenly where the model doesn't compare. An image or a text without a negative in the
    batch adds nothing.

    Args:
        right: logits [B, 2] of the true pairs.
        match: (numbers of images [n], numbers of texts [n]) → logits [n, 2].
        to_text: [B, B] likeness of image and text, without gradients.
        same: [B, B], whether image and text belong together.
    """
    likeness = torch.zeros_like(same, dtype=torch.float32) if to_text is None else to_text.float()
    images, wrong_texts = _drawn(likeness, same)
    texts, wrong_images = _drawn(likeness.T, same.T)
    labels = torch.ones(len(right), dtype=torch.long, device=right.device)
    logits = right
    if len(images) + len(texts):
        wrong = match(torch.cat([images, wrong_images]), torch.cat([wrong_texts, texts]))
        logits = torch.cat([right, wrong])
        labels = torch.cat([labels, labels.new_zeros(len(wrong))])
    return F.cross_entropy(logits.float(), labels)


def _whole(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _drawn(likeness: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """(rows that have a wrong column, one of these for each)."""
    weights = likeness.softmax(1).clamp_min(1e-6).masked_fill(same, 0.0)
    rows = (~same).any(1).nonzero()[:, 0]
    if not len(rows):
        return rows, rows
    return rows, torch.multinomial(weights[rows], 1)[:, 0]


def words(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """−log p of texts [N, A] that begin with a start token: summed over their words, [N].

    Args:
        logits: [N, A, V] of the word that follows each position.
        mask: [N, A], 1 where there is a word.
    """
    predicted = logits[:, :-1].float()
    each = F.cross_entropy(predicted.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (each.view(len(ids), -1) * mask[:, 1:]).sum(1)


def gathered(x: Tensor) -> Tensor:
    """[B, …] of this process → those of all processes, in their order, with gradients."""
    if processes.rank_and_size()[1] == 1:
        return x
    from torch.distributed.nn.functional import all_gather

    if not x.requires_grad:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)
    return torch.cat(all_gather(x.contiguous()))  # type: ignore[no-untyped-call]
