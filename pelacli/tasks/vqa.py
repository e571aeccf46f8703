"""Visual question answering: an answer to a question about an image; VQA accuracy, in percent.

Models with classes answer with one of them (ViLT), models with a decoder in words (BLIP, ALBEF).
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs, TextInput
    from pelacli.models.pairs.view import PairModel
    from pelacli.recipe.data import Data

from pelacli.data.dataset import Dataset
from pelacli.data.formats import questions
from pelacli.data.formats.questions import Question
from pelacli.data.loader import Batch
from pelacli.errors import RequestError
from pelacli.lowrank.calls import evaluating
from pelacli.models.opened import OpenModel
from pelacli.models.pairs.families import view_of
from pelacli.recipe.fields import FilePath, Text
from pelacli.system import files, processes
from pelacli.system.devices import move_batch
from pelacli.tasks.common.decoding import answer_tokens, rank_answers, write_answers
from pelacli.tasks.common.heads import all_named, head_classes
from pelacli.tasks.common.pairs import (
    Entries,
    PairTask,
    PreparePair,
    Tokenise,
    fit_pair_model,
    pair_input,
    pair_inputs,
)
from pelacli.tasks.common.pictures import PreparePicture, swap_sides
from pelacli.tasks.common.vqa_accuracy import accuracy

_LONGEST = 10  # words of an answer that is written


class Task(PairTask):
    MAIN: ClassVar[str | None] = "vqa_accuracy"
    KIND: ClassVar[str] = "vqa"

    images_vg: Text | None = Field(None, description="the same for Visual Genome's entries")
    answers: Text | None = Field(
        None, description="JSON list of all answers that may be given; else the training split's"
    )
    least: int = Field(1, ge=1, description="times an answer comes in training to be a class")
    k_test: int = Field(128, ge=1, description="answers of the list that a decoder ranks in full")
    results: FilePath | None = Field(
        None, description="file for the VQA server: [{question_id, answer}]"
    )

    def open(
        self,
        data: Data,
        split: str,
        *,
        inputs: Inputs,
        training: bool = False,
        unlabelled: bool = False,
    ) -> Dataset:
        pair = pair_input(inputs, data)
        roots = {"vqa": self.images, "vg": self.images_vg or self.images}
        entries, name = questions.read(data.dataset, split, roots)
        # Training needs an answer to each; an evaluation leaves out those that have none.
        answered = (all if training else any)(question.answers for question in entries)
        labelled = not unlabelled and (answered or (self.results is not None and not training))
        prepare = PrepareQuestion(PreparePicture(pair, data, training), self.wording)
        collate = CollateQuestions(self.tokeniser(pair.text), pair.text)
        self._candidates(pair.text)  # a mistake in the list of answers is found before any work
        return Dataset(data.dataset, Entries(entries), prepare, collate, name, labelled=labelled)

    def fit(self, opened: OpenModel, dataset: Dataset, classes: int | None, seed: int) -> OpenModel:
        """A head with a class for each answer, for a model that answers by classes.

        The answers are those of ``answers``, or else the model's own, or else those of the data.
        The recipe's number may add classes that no answer belongs to. Where it is smaller than the
        number of the model's answers, the data's are taken.
        """
        view = view_of(opened.module)
        names = questions.answer_list(self.answers) if self.answers else None
        if view.answers == "words":
            return fit_pair_model(opened, self.KIND, seed, dataset, names)
        if names is None and view.answers == "classes":
            are_named = not all(name.startswith("LABEL_") for name in view.classes)
            if are_named and (classes is None or classes >= len(view.classes)):
                names = view.classes
        if names is None:
            names = self._common_answers(dataset)
        if names:
            names = all_named(*head_classes(replace(dataset, classes=names), classes))
        return fit_pair_model(opened, self.KIND, seed, dataset, names)

    def _common_answers(self, dataset: Dataset) -> list[str]:
        """The answers that people gave at least ``least`` times, by the alphabet."""
        entries: Sequence[Question] = cast(Entries, dataset.source).items
        counts = Counter(answer for question in entries for answer in question.answers)
        return sorted(answer for answer, times in counts.items() if times >= self.least)

    def forward(self, module: nn.Module, batch: Batch) -> dict[str, Any]:
        view, inputs = view_of(module), batch["inputs"]
        if view.answers == "classes":
            return {"view": view, "logits": view.classify(inputs)}
        states, mask = view.read(inputs)
        if "answer_ids" not in batch:  # without labels: the one answer that the inputs hold
            ids, ids_mask = inputs["decoder_input_ids"], inputs["decoder_attention_mask"]
            return {"view": view, "logits": view.decode(ids, ids_mask, states, mask)}
        rows = batch["answer_of"]
        logits = view.decode(batch["answer_ids"], batch["answer_mask"], states[rows], mask[rows])
        return {"view": view, "logits": logits}

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """In words: see `PairModel.answer_loss`. By classes: binary cross-entropy with each class's
        VQA accuracy, summed over classes (ViLT)."""
        view, logits = output["view"], output["logits"]
        if not all(batch["people"]):
            raise RequestError(
                "the data has questions without an answer, which can't be learned from; leave "
                "them out"
            )
        if view.answers != "classes":
            loss: Tensor = view.answer_loss(logits, batch)
            return loss
        targets = soft_labels(batch["people"], view.classes).to(logits.device)
        return F.binary_cross_entropy_with_logits(logits.float(), targets) * targets.shape[1]

    def without_files(self) -> Task:
        """The same task without a file of results."""
        return self.model_copy(update={"results": None})

    @torch.no_grad()
    def evaluate(
        self,
        module: nn.Module,
        loader: Iterable[Batch],
        device: torch.device,
        num_classes: int | None,
    ) -> dict[str, float]:
        """``vqa_accuracy`` where people's answers are known; writes the ``results``, if wanted."""
        view = view_of(module)
        text_input = cast(CollateQuestions, cast(Any, loader).dataset.collate).text_input
        candidates = self._candidates(text_input)
        candidates = None if candidates is None else candidates.to(device)
        results: list[dict[str, Any]] = []
        right, asked = 0.0, 0
        with evaluating(module):
            for batch in loader:
                inputs = move_batch(batch["inputs"], device)
                answers = self._answer(view, inputs, text_input, candidates)
                for number, answer, people in zip(
                    batch["question_ids"], answers, batch["people"], strict=True
                ):
                    results.append({"question_id": number, "answer": answer})
                    if people:
                        right, asked = right + accuracy(answer, people), asked + 1
        right, asked = processes.total(right), processes.total(asked)
        if self.results is not None:
            _write(self.results, results)
        return {"vqa_accuracy": 100 * right / asked} if asked else {}

    def _answer(
        self,
        view: PairModel,
        inputs: dict[str, Tensor],
        text_input: TextInput,
        candidates: Candidates | None,
    ) -> list[str]:
        """The model's answer to each question of a batch."""
        if view.answers == "classes":
            names = view.classes
            return [names[i] for i in view.classify(inputs).argmax(-1).tolist()]
        states, mask = view.read(inputs)
        if candidates is not None:
            best = rank_answers(view, states, mask, candidates.ids, candidates.mask, self.k_test)
            return [candidates.answers[i] for i in best.tolist()]
        if text_input.marks is None:
            raise RequestError("vqa: the model's decoder has no start token to write from")
        rows = write_answers(view, states, mask, text_input.marks, _LONGEST)
        return [text_input.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]

    def _candidates(self, text_input: TextInput) -> Candidates | None:
        """The ``answers`` that a decoder chooses from; None where it writes its own."""
        if self.answers is None:
            return None
        names = questions.answer_list(self.answers)
        if text_input.marks is None:
            return None
        return Candidates(names, *answer_tokens(text_input, names))


@dataclass(frozen=True)
class Candidates:
    """Answers that a decoder ranks, with their tokens [N, A] and the mask of these [N, A]."""

    answers: list[str]
    ids: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> Candidates:
        return Candidates(self.answers, self.ids.to(device), self.mask.to(device))


def soft_labels(people: Sequence[Sequence[str]], classes: Sequence[str]) -> Tensor:
    """[B, classes]: the VQA accuracy of each class as the answer to each question.

    Args:
        people: the answers that people gave to each question.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    labels = torch.zeros(len(people), len(classes))
    for row, answers in enumerate(people):
        for answer in set(answers) & numbers.keys():
            labels[row, numbers[answer]] = accuracy(answer, answers)
    return labels


@dataclass
class PrepareQuestion(PreparePair):
    """A sample of an image and a question, with the answers that people gave."""

    def __call__(self, raw: Question, where: str) -> Batch:
        image, mirrored = self.picture(raw.image, where)
        change: Callable[[str], str] = swap_sides if mirrored else str
        return {
            "image": image,
            "question": self.wording(change(raw.text)),
            "people": [change(answer) for answer in raw.answers],
            "weights": {change(answer): weight for answer, weight in raw.weights.items()},
            "question_id": raw.number,
        }


@dataclass
class CollateQuestions:
    """A batch: questions, and, for a decoder, all answers to them one after the other."""

    tokenise: Tokenise
    text_input: TextInput

    def __call__(self, items: list[Batch]) -> Batch:
        inputs = pair_inputs(items, self.tokenise([item["question"] for item in items]))
        batch: Batch = {
            "inputs": inputs,
            "people": [item["people"] for item in items],
            "question_ids": [item["question_id"] for item in items],
        }
        if self.text_input.marks is None:
            return batch
        # What a decoder reads where no loss is computed: the answer that most people gave.
        likeliest = [max(item["weights"], key=item["weights"].get, default="") for item in items]
        ids, mask = answer_tokens(self.text_input, likeliest)
        inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        weighted = [
            (row, *pair) for row, item in enumerate(items) for pair in item["weights"].items()
        ]
        if weighted:
            rows, answers, weights = zip(*weighted, strict=True)
            ids, mask = answer_tokens(self.text_input, answers)
            batch |= {"answer_ids": ids, "answer_mask": mask}
            batch |= {"answer_of": torch.tensor(rows), "answer_weights": torch.tensor(weights)}
        return batch


def _write(path: Path, results: list[dict[str, Any]]) -> None:
    """Write the server's file: the results of all processes, in the order of their questions."""
    rows = sorted(itertools.chain(*processes.all_gather(results)), key=_order)
    if processes.rank_and_size()[0] == 0:
        files.write(path, json.dumps(rows).encode())


def _order(row: dict[str, Any]) -> tuple[bool, Any]:
    return isinstance(row["question_id"], str), row["question_id"]
