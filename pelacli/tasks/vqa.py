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
    from pelacli.recipe.schema import Data

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
from pelacli.tasks.common.answers import accuracy, ranked, written
from pelacli.tasks.common.heads import all_named, head_classes
from pelacli.tasks.common.pairs import Entries, PairTask, answers, both, fitted, together
from pelacli.tasks.common.pictures import Look, mirrored

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
        wanted = both(inputs, data)
        roots = {"vqa": self.images, "vg": self.images_vg or self.images}
        entries, name = questions.read(data.dataset, split, roots)
        # Training needs an answer to each; an evaluation leaves out those that have none.
        answered = (all if training else any)(one.answers for one in entries)
        labelled = not unlabelled and (answered or (self.results is not None and not training))
        make = Make(Look(wanted, data, training), self.wording)
        collate = Collate(self.tokens(wanted.text), wanted.text)
        self._listed(wanted.text)  # its mistakes are found before there is work
        return Dataset(data.dataset, Entries(entries), make, collate, name, labelled=labelled)

    def fit(self, opened: OpenModel, dataset: Dataset, classes: int | None, seed: int) -> OpenModel:
        """A head with a class for each answer, for a model that answers by classes.

        The answers are those of ``answers``, or else the model's own, or else those of the data.
        The recipe's number may add classes that no answer belongs to. Where it is smaller than the
        number of the model's answers, the data's are taken.
        """
        view = view_of(opened.module)
        names = questions.answer_list(self.answers) if self.answers else None
        if view.answers == "words":
            return fitted(opened, self.KIND, seed, dataset, names)
        if names is None and view.answers == "classes":
            are_named = not all(name.startswith("LABEL_") for name in view.classes)
            if are_named and (classes is None or classes >= len(view.classes)):
                names = view.classes
        if names is None:
            names = self._common_answers(dataset)
        if names:
            names = all_named(*head_classes(replace(dataset, classes=names), classes))
        return fitted(opened, self.KIND, seed, dataset, names)

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
        of = batch["answer_of"]
        logits = view.decode(batch["answer_ids"], batch["answer_mask"], states[of], mask[of])
        return {"view": view, "logits": logits}

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """In words: see `PairModel.answer_loss`. By classes: binary cross-entropy with each class's
        VQA accuracy, summed over classes (ViLT)."""
        view, logits = output["view"], output["logits"]
        if not all(batch["people"]):
            raise RequestError(
                "the data has questions without an answer, to which nothing can be "
                "learnt; leave them out"
            )
        if view.answers != "classes":
            found: Tensor = view.answer_loss(logits, batch)
            return found
        wanted = soft_labels(batch["people"], view.classes).to(logits.device)
        return F.binary_cross_entropy_with_logits(logits.float(), wanted) * wanted.shape[1]

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
        """``vqa_accuracy`` where there are answers; the file of results, if one is wanted."""
        view = view_of(module)
        words: TextInput = loader.dataset.collate.words  # type: ignore[attr-defined]
        given: list[dict[str, Any]] = []
        right, asked = 0.0, 0
        choices = self._listed(words)
        if choices is not None:
            choices = (choices[0], choices[1].to(device), choices[2].to(device))
        with evaluating(module):
            for batch in loader:
                told = self._answers(view, move_batch(batch["inputs"], device), words, choices)
                for number, answer, people in zip(
                    batch["question_ids"], told, batch["people"], strict=True
                ):
                    given.append({"question_id": number, "answer": answer})
                    if people:
                        right, asked = right + accuracy(answer, people), asked + 1
        right, asked = processes.total(right), processes.total(asked)
        if self.results is not None:
            _write(self.results, given)
        return {"vqa_accuracy": 100 * right / asked} if asked else {}

    def _answers(
        self,
        view: PairModel,
        inputs: dict[str, Tensor],
        words: TextInput,
        choices: tuple[list[str], Tensor, Tensor] | None,
    ) -> list[str]:
        if view.answers == "classes":
            names = view.classes
            return [names[i] for i in view.classify(inputs).argmax(-1).tolist()]
        states, mask = view.read(inputs)
        if choices is not None:
            names, ids, ids_mask = choices
            best = ranked(view, states, mask, ids, ids_mask, self.k_test)
            return [names[i] for i in best.tolist()]
        if words.marks is None:
            raise RequestError("vqa: the model's decoder has no start token to write from")
        rows = written(view, states, mask, words.marks, _LONGEST)
        return [words.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]

    def _listed(self, words: TextInput) -> tuple[list[str], Tensor, Tensor] | None:
        """The list of answers, and their tokens, for a model that writes."""
        if self.answers is None:
            return None
        names = questions.answer_list(self.answers)
        return None if words.marks is None else (names, *answers(words, names))


def soft_labels(people: Sequence[Sequence[str]], names: Sequence[str]) -> Tensor:
    """[B, classes]: the accuracy of each class's name among the answers of each question."""
    place = {name: number for number, name in enumerate(names)}
    found = torch.zeros(len(people), len(names))
    for row, said in enumerate(people):
        for answer in set(said) & place.keys():
            found[row, place[answer]] = accuracy(answer, said)
    return found


@dataclass
class Make:
    """A sample from a question."""

    look: Look
    wording: Callable[[str], str]

    def __call__(self, raw: Question, where: str) -> Batch:
        image, flipped = self.look(raw.image, where)
        change: Callable[[str], str] = mirrored if flipped else str
        return {
            "image": image,
            "question": self.wording(change(raw.text)),
            "people": [change(answer) for answer in raw.answers],
            "weights": {change(answer): weight for answer, weight in raw.weights.items()},
            "question_id": raw.number,
        }


@dataclass
class Collate:
    """A batch: questions, and, for a decoder, all answers to them one after the other."""

    tokens: Callable[[Sequence[str]], dict[str, Tensor]]
    words: TextInput

    def __call__(self, items: list[Batch]) -> Batch:
        inputs = together(items, self.tokens([item["question"] for item in items]))
        batch: Batch = {
            "inputs": inputs,
            "people": [item["people"] for item in items],
            "question_ids": [item["question_id"] for item in items],
        }
        if self.words.marks is None:
            return batch
        # What a decoder reads when nobody wants a loss: the answer that most people gave.
        likeliest = [max(item["weights"], key=item["weights"].get, default="") for item in items]
        ids, mask = answers(self.words, likeliest)
        inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        said = [(i, a, w) for i, item in enumerate(items) for a, w in item["weights"].items()]
        if said:
            batch["answer_ids"], batch["answer_mask"] = answers(self.words, [a for _, a, _ in said])
            batch["answer_of"] = torch.tensor([i for i, _, _ in said])
            batch["answer_weights"] = torch.tensor([w for _, _, w in said])
        return batch


def _write(path: Path, answers: list[dict[str, Any]]) -> None:
    """Write the server's file: the answers of all processes, in the order of their questions."""
    rows = sorted(itertools.chain(*processes.all_gather(answers)), key=_order)
    if processes.rank_and_size()[0] == 0:
        files.write(path, json.dumps(rows).encode())


def _order(row: dict[str, Any]) -> tuple[bool, Any]:
    return isinstance(row["question_id"], str), row["question_id"]
