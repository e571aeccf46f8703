"""Answers in words: how a decoder is asked for them, and how people's answers judge them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from pelacli.models.pairs.view import PairModel

# Asking a decoder -------------------------------------------------------------------------------


def ranked(
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
    picked = first.float()[:, ids[:, 1]].topk(k, dim=1).indices
    best = []
    for numbers, state, seen in zip(picked, states, mask, strict=True):
        # Question by question: k times the states of a whole batch would be large.
        logits = view.decode(
            ids[numbers], ids_mask[numbers], state.expand(k, -1, -1), seen.expand(k, -1)
        )
        words = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[numbers, 1:, None])[..., 0]
        best.append(numbers[(words * ids_mask[numbers, 1:]).sum(1).argmax()])
    return torch.stack(best)


def written(
    view: PairModel, states: Tensor, mask: Tensor, marks: tuple[int, int], longest: int
) -> list[list[int]]:
    """Answers written word by word, the likeliest each: token numbers between start and end."""
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


# Judging ----------------------------------------------------------------------------------------


def accuracy(answer: str, people: Sequence[str]) -> float:
    """VQA accuracy, 0 to 1 (Antol et al., ICCV 2015; Goyal et al., CVPR 2017).

    An answer is right that three people gave, and a third as right for each if fewer did: min(n/3,
    1), the mean over leaving out each of the people in turn. All are normalised first. Where only
    one person was asked, the answer must be that one's.
    """
    said = normal(answer)
    same = [normal(one) == said for one in people]
    if len(same) == 1:
        return float(same[0])
    total = sum(same)
    return sum(min(1.0, (total - one) / 3) for one in same) / len(same)


def normal(answer: str) -> str:
    """An answer as the measure compares it: lower case, numbers in digits, no articles, no
    punctuation but in numbers, contractions with their apostrophe."""
    text = " ".join(answer.split()).lower()
    numeric = re.search(r"\d,\d", text) is not None
    for mark in _MARKS:
        loose = f"{mark} " in text or f" {mark}" in text
        text = text.replace(mark, "" if loose or numeric else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join(_CONTRACTIONS.get(w, w) for w in words if w not in ("a", "an", "the"))


_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(i) for i, word in enumerate(_DIGITS.split())} | {"none": "0"}
# Where the word without its apostrophe is another word ("well", "its", "were", "shell", "ill",
# "id", "hell", "shed", "wed"), it is left alone.
_SHORT = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's "
    "how'd how'll how's i'm i've isn't it'd it'll let's ma'am might've mightn't must've "
    "mustn't needn't not've o'clock oughtn't shan't should've shouldn't somebody'd someone'd "
    "somethin' that'd that's there'd there're there's they'd they'll they're they've 'twas "
    "wasn't we've weren't what'll what're what's what've when's where'd where's where've "
    "who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll "
    "you're you've"
)
_CONTRACTIONS = {word.replace("'", ""): word for word in _SHORT.split()}
