"""Questions about images: ALBEF's JSON for VQA, or a Hugging Face dataset.

A list of ``{"dataset": "vqa" or "vg", "image": path, "question": text, "answer": list (vqa) or
text (vg), "question_id": number}``; ``dataset`` is "vqa" where it is left out, and a test split has
no answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelacli.data.formats import hub_rows, json_files
from pelacli.errors import RequestError

_SINGLE = 0.5  # weight of Visual Genome's one answer, as in ALBEF


@dataclass(frozen=True)
class Question:
    """A question about an image.

    Attributes:
        answers: what people answered, repetitions included; empty where nobody has.
        weights: answer → how much it counts in training: its share of the answers.
        number: the question's own, for a server; its place in the split where it has none.
        where: its place in words, for errors.
    """

    image: Any
    text: str
    answers: list[str]
    weights: Mapping[str, float]
    number: int | str
    where: str


def read(
    spec: str, split: str, images: Mapping[str, str | None]
) -> tuple[list[Question], str | None]:
    """The questions of a split and its name; arguments as in `formats.captions.read`.

    Args:
        images: "vqa" and "vg" → folder that the image paths of that dataset start from.

    Raises:
        RequestError: file and entry of a mistake.
    """
    if spec.startswith("hfds/"):
        wanted = {
            "question": ("question",),
            "answer": ("answers", "answer", "multiple_choice_answer", "label"),
            "question_id": ("question_id", "id"),
        }
        rows, part = hub_rows.rows(spec, split, wanted)
        return [_question(f, where, image, i) for i, (image, f, where) in enumerate(rows)], part
    files, name = json_files.files(spec, split)
    questions: list[Question] = []
    numbers: set[tuple[str, str]] = set()
    for file in files:
        for entry, where in json_files.entries(file):
            kind = entry.get("dataset", "vqa")
            if kind not in ("vqa", "vg"):
                raise RequestError(f"{where}: dataset {kind!r} is neither 'vqa' nor 'vg'")
            image = json_files.image(entry, where, images.get(kind))
            questions.append(_question(entry, where, image, len(questions)))
            if "question_id" in entry:
                number = (kind, str(entry["question_id"]))  # each dataset counts its own questions
                if number in numbers:
                    raise RequestError(
                        f"{where}: question_id {number[1]} comes twice; give each question its "
                        "own, and all answers to it in one list"
                    )
                numbers.add(number)
    if not questions:
        raise RequestError(f"{files[0]}: no entries")
    return questions, name


def answer_list(path: str) -> list[str]:
    """The answers that may be given: a JSON list of texts.

    Raises:
        RequestError: it is none, or one comes twice.
    """
    content = json_files.read(Path(path).expanduser())
    if not isinstance(content, list) or not content:
        raise RequestError(f"{path}: expected a list of answers")
    answers = json_files.texts({"answers": content}, "answers", path)
    twice = next((answer for answer, times in Counter(answers).items() if times > 1), None)
    if twice is not None:
        raise RequestError(f"{path}: the answer {twice!r} comes twice")
    return answers


def _question(entry: Mapping[str, Any], where: str, image: Any, index: int) -> Question:
    text = json_files.text(entry, "question", where)
    given = entry.get("answer")
    answers: list[str] = []
    if given is not None:
        if isinstance(given, list) and given and isinstance(given[0], dict):
            # as VQA's own annotations have them
            given = [one.get("answer") if isinstance(one, dict) else one for one in given]
        answers = json_files.texts({"answer": given}, "answer", where)
    single = entry.get("dataset") == "vg"
    share = _SINGLE if single else 1 / max(1, len(answers))
    weights: dict[str, float] = {}
    for answer in answers:
        weights[answer] = weights.get(answer, 0.0) + share
    number = entry.get("question_id", index)
    if isinstance(number, bool) or not isinstance(number, int | str):
        raise RequestError(f"{where}: 'question_id' is no identifier: {number!r}")
    return Question(image, text, answers, weights, number, where)
