"""Answers to questions by ranking a list of candidates, as ALBEF is evaluated on VQA."""

from __future__ import annotations

import torch
from torch import Tensor

from pelacli.models.albef.network import Albef


@torch.no_grad()
def rank(
    network: Albef,
    question: Tensor,
    question_mask: Tensor,
    answer_ids: Tensor,
    answer_mask: Tensor,
    k: int = 128,
) -> tuple[Tensor, Tensor]:
    """The ``k`` likeliest of a list of answers to each question, best first.

    The first word's probability picks k candidates; the whole answer's ranks them. (The authors'
    first code added the first word's log-probability to the whole answer's, which holds it already;
    their later BLIP ranks by the whole answer alone, and so does this.)

    Args:
        question: [B, T, D] fused states, ``question_mask`` [B, T].
        answer_ids: [N, A] candidates, each from the start token to the end token, and
            ``answer_mask`` [N, A].
        k: at most N are ranked.

    Returns:
        (numbers of answers [B, k], their log-probabilities [B, k]).
    """
    k = min(k, len(answer_ids))
    start = answer_ids[:1, :1].expand(len(question), 1)
    first = network.decode(start, torch.ones_like(start), question, question_mask)[:, 0]
    picked = first.float().log_softmax(-1)[:, answer_ids[:, 1]].topk(k, dim=1).indices
    scores = torch.stack(
        [  # question by question: k times the states of a whole batch would be large
            _log_probability(
                network,
                answer_ids[numbers],
                answer_mask[numbers],
                states.expand(k, -1, -1),
                mask.expand(k, -1),
            )
            for numbers, states, mask in zip(picked, question, question_mask, strict=True)
        ]
    )
    scores, order = scores.sort(dim=1, descending=True)
    return picked.gather(1, order), scores


def _log_probability(
    network: Albef, ids: Tensor, mask: Tensor, question: Tensor, question_mask: Tensor
) -> Tensor:
    """[N] of whole answers, the product over their words."""
    logits = network.decode(ids, mask, question, question_mask)[:, :-1].float()
    words = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (words * mask[:, 1:]).sum(1)
