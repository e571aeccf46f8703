"""VQA accuracy: an answer against those that people gave."""

from __future__ import annotations

import re
from collections.abc import Sequence

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


def accuracy(answer: str, people: Sequence[str]) -> float:
    """VQA accuracy, 0 to 1 (Antol et al., ICCV 2015; Goyal et al., CVPR 2017).

    An answer that n people gave is worth min(n / 3, 1). The accuracy is the mean of this over
    leaving out each of the people in turn. All answers are normalised first. Where only one person
    was asked, the answer must be that person's.

    Args:
        people: the answer of each person, at least one.
    """
    normalised = normalise(answer)
    same = [normalise(other) == normalised for other in people]
    if len(same) == 1:
        return float(same[0])
    total = sum(same)
    return sum(min(1.0, (total - is_same) / 3) for is_same in same) / len(same)


def normalise(answer: str) -> str:
    """An answer as VQA's evaluation compares it: lower case, numbers in digits, no articles, no
    punctuation but in numbers, contractions with their apostrophe."""
    text = " ".join(answer.split()).lower()
    numeric = re.search(r"\d,\d", text) is not None
    for mark in _MARKS:
        loose = f"{mark} " in text or f" {mark}" in text
        text = text.replace(mark, "" if loose or numeric else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join(_CONTRACTIONS.get(w, w) for w in words if w not in ("a", "an", "the"))
