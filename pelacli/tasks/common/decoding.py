"""Answers in words: how a decoder reads them, ranks a list of them, and writes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pelacli.models.inputs import TextInput

from pelacli.models.pairs.view import PairModel


def answer_tokens(
    text_input: TextInput, answers: Sequence[str], limit: int = 32
) -> tuple[Tensor, Tensor]:
    """Answers as a decoder writes them: token numbers [N, A] from its start to its end token, and
    their mask [N, A].

    Args:
        text_input: of a model with a decoder.
        limit: the most tokens of an answer.
    """
    assert text_input.marks is not None
    start, end = text_input.marks
    encoded = text_input.tokenizer(list(answers), add_special_tokens=False)["input_ids"]
    rows = [[start, *ids[: limit - 2], end] for ids in encoded]
    longest = max(len(row) for row in rows)
    padding = text_input.tokenizer.pad_token_id or 0
    ids = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def rank_answers(
    view: PairModel, states: Tensor, mask: Tensor, ids: Tensor, ids_mask: Tensor, k: int
) -> Tensor:
    """The likeliest of a list of answers to each question: the first word's probability picks k
    candidates, the whole answer's decides (ALBEF, Li et al., NeurIPS 2021, section 4; BLIP).
    ALBEF's first code added the first word's log-probability to the whole answer's, which holds it
    already; BLIP ranks by the whole answer alone, and so does this.

    Args:
        states: [B, T, D] questions, ``mask`` [B, T]: what `PairModel.read` gives.
        ids: [N, A] answers from the start to the end token, ``ids_mask`` [N, A].

    Returns:
        numbers of answers, [B].
    """
    k = min(k, len(ids))
    start = ids[:1, :1].expand(len(states), 1)
    first = view.decode(start, torch.ones_like(start), states, mask)[:, 0]
    candidates = first.float()[:, ids[:, 1]].topk(k, dim=1).indices
    best = []
    for numbers, state, state_mask in zip(candidates, states, mask, strict=True):
        # Question by question: k times the states of a whole batch would be large.
        logits = view.decode(
            ids[numbers], ids_mask[numbers], state.expand(k, -1, -1), state_mask.expand(k, -1)
        )
        words = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[numbers, 1:, None])[..., 0]
        best.append(numbers[(words * ids_mask[numbers, 1:]).sum(1).argmax()])
    return torch.stack(best)


def write_answers(
    view: PairModel, states: Tensor, mask: Tensor, marks: tuple[int, int], longest: int
) -> list[list[int]]:
    """Answers written word by word, each word the likeliest: token numbers between start and end.

    Args:
        states, mask: as for `rank_answers`.
        marks: the start and the end token.
        longest: the most words of an answer.
    """
    start, end = marks
    ids = torch.full((len(states), 1), start, device=states.device)
    done = torch.zeros(len(states), dtype=torch.bool, device=states.device)
    for _ in range(longest):
        logits = view.decode(ids, torch.ones_like(ids), states, mask)[:, -1]
        word = logits.argmax(-1).masked_fill(done, end)
        ids, done = torch.cat([ids, word[:, None]], 1), done | (word == end)
        if bool(done.all()):
            break
    rows = [row[1:] for row in ids.tolist()]
    return [row[: row.index(end)] if end in row else row for row in rows]
