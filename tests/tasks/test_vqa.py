"""VQA: its accuracy by hand, answers ranked and written, the server's file, formats, learning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pair_world as world
import pytest
import torch

from pelacli.artefact import loading
from pelacli.data.formats import questions as formats_questions
from pelacli.data.loader import loader
from pelacli.errors import RequestError
from pelacli.models import examples, heads, opening, prediction, wrapping
from pelacli.models.pairs.families import view_of
from pelacli.recipe.data import Augment, Data
from pelacli.recipe.evaluation import Evaluation, NamedModel
from pelacli.steps import eval as eval_step
from pelacli.tasks import base, registry, vqa
from pelacli.tasks.common import decoding, vqa_accuracy

QUIET = Augment(none=True)


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Path:
    """Thirty questions about ten images; the test split has no answers."""
    folder = tmp_path_factory.mktemp("asked") / "data"
    world.questions(folder, 1)
    file = folder / "train.json"
    file.write_text(json.dumps(json.loads(file.read_text())[:30]))
    questions = json.loads(file.read_text())
    test = [{k: v for k, v in q.items() if k != "answer"} for q in questions]
    (folder / "test.json").write_text(json.dumps(test))
    (folder / "answers.json").write_text(json.dumps(world.ANSWERS))
    return folder


def opened(kind: str, folder: Path):
    return opening.open(str(world.model(kind, folder / kind)))


def batches(folder: Path, model, task, split: str = "train", size: int = 8, **how):
    data = Data(dataset=str(folder), augment=QUIET)
    return loader(task.open(data, split, inputs=model.inputs, **how), batch_size=size)


# The measure ------------------------------------------------------------------------------------


def by_hand(answer: str, people: list[str]) -> float:
    """Each of the ten is left out once; what the other nine make of the answer."""
    total = 0.0
    for out in range(len(people)):
        others = [one for i, one in enumerate(people) if i != out]
        total += min(1.0, sum(one == answer for one in others) / 3)
    return total / len(people)


@pytest.mark.parametrize("count", range(11))
def test_accuracy_leaves_each_of_the_people_out_once(count):
    people = ["red"] * count + [f"other {i}" for i in range(10 - count)]
    assert vqa_accuracy.accuracy("red", people) == pytest.approx(by_hand("red", people))
    known = {0: 0.0, 1: 0.3, 2: 0.6, 3: 0.9, 4: 1.0}
    assert vqa_accuracy.accuracy("red", people) == pytest.approx(known.get(count, 1.0))


def test_answers_are_normalised_as_the_measure_does():
    for given, wanted in {
        "The Red-Hat": "red hat", "two": "2", "none": "0", "1,000": "1000", "3.5": "3.5",
        "yes.": "yes", "a man's": "man's", "dont": "don't", "wait, what?": "wait what",
        "an  apple\n": "apple", "its": "its", "black/white": "black white",
    }.items():  # fmt: skip
        assert vqa_accuracy.normalise(given) == wanted, given
    assert vqa_accuracy.accuracy("Two", ["2"] * 4 + ["3"] * 6) == 1.0
    assert vqa_accuracy.accuracy("red", ["red"]) == 1.0  # one person was asked
    assert vqa_accuracy.accuracy("red", ["blue"]) == 0.0


# Answers in words -------------------------------------------------------------------------------


def probability(model, inputs, answer: str) -> float:
    """log p of an answer, word by word, by transformers' own forward pass."""
    ids = [world.VOCABULARY[word] for word in answer.split()]
    given = torch.tensor([[world.DECODE, *ids]])
    image = model.module.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state
    question = model.module.text_encoder(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        encoder_hidden_states=image,
    ).last_hidden_state
    logits = model.module.text_decoder(
        input_ids=given,
        encoder_hidden_states=question,
        encoder_attention_mask=inputs["attention_mask"],
    ).logits[0]
    logs = logits.log_softmax(-1)
    return float(sum(logs[i, word] for i, word in enumerate([*ids, world.END])))


@torch.no_grad()
def test_blip_ranks_a_list_by_whole_answers(asked, tmp_path):
    names = ["red", "red thing", "a red thing", "yes", "no", "left", "at the left"]
    (tmp_path / "list.json").write_text(json.dumps(names))
    model = opened("BlipForQuestionAnswering", tmp_path)
    task = registry.get("vqa", {"answers": str(tmp_path / "list.json")})
    batch = next(iter(batches(asked, model, task)))
    inputs = batch["inputs"]
    ids, mask = decoding.answer_tokens(model.inputs.text, names)
    assert ids[2].tolist() == [world.DECODE, world.VOCABULARY["a"], world.VOCABULARY["red"],
                               world.VOCABULARY["thing"], world.END]  # fmt: skip
    view = view_of(model.module)
    states, seen = view.read(inputs)
    found = decoding.rank_answers(view, states, seen, ids, mask, 7).tolist()
    for row in range(len(found)):
        length = int(inputs["attention_mask"][row].sum())
        one = {
            "pixel_values": inputs["pixel_values"][row : row + 1],
            "input_ids": inputs["input_ids"][row : row + 1, :length],  # no padding at all
            "attention_mask": inputs["attention_mask"][row : row + 1, :length],
        }
        scores = [probability(model, one, name) for name in names]
        assert scores[found[row]] == pytest.approx(max(scores), abs=1e-4)
    # With one candidate it is one whose first word is the likeliest.
    start = ids[:1, :1].expand(len(states), 1)
    first = view.decode(start, torch.ones_like(start), states, seen)[:, 0]
    best = first[:, ids[:, 1]].amax(1)
    for row, number in enumerate(decoding.rank_answers(view, states, seen, ids, mask, 1).tolist()):
        assert first[row, ids[number, 1]] == best[row]


@torch.no_grad()
def test_blip_writes_as_transformers_does(asked, tmp_path):
    model = opened("BlipForQuestionAnswering", tmp_path)
    batch = next(iter(batches(asked, model, registry.get("vqa"), size=1)))
    inputs = {n: batch["inputs"][n] for n in ("pixel_values", "input_ids", "attention_mask")}
    view = view_of(model.module)
    found = decoding.write_answers(view, *view.read(inputs), (world.DECODE, world.END), 5)
    wanted = model.module.generate(**inputs, max_new_tokens=5, do_sample=False)[0].tolist()[1:]
    wanted = wanted[: wanted.index(world.END)] if world.END in wanted else wanted
    assert found == [wanted]


def test_the_loss_of_answers_weighs_them_by_how_many_gave_them(asked, tmp_path):
    model, task = opened("BlipForQuestionAnswering", tmp_path), registry.get("vqa")
    dataset_batches = batches(asked, model, task, size=3)
    batch = next(iter(dataset_batches))
    entries = json.loads((asked / "train.json").read_text())[:3]
    found = task.loss(task.forward(model.module, batch), batch)
    wanted = 0.0
    for row, entry in enumerate(entries):
        length = int(batch["inputs"]["attention_mask"][row].sum())
        one = {
            "pixel_values": batch["inputs"]["pixel_values"][row : row + 1],
            "input_ids": batch["inputs"]["input_ids"][row : row + 1, :length],
            "attention_mask": batch["inputs"]["attention_mask"][row : row + 1, :length],
        }
        for answer in set(entry["answer"]):
            share = entry["answer"].count(answer) / 10
            wanted -= share * probability(model, one, answer) / 3
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_what_calibration_runs_on_has_an_answer_to_read(asked, tmp_path):
    model, task = opened("BlipForQuestionAnswering", tmp_path), registry.get("vqa")
    batch = next(iter(batches(asked, model, task, unlabelled=True)))
    ids = batch["inputs"]["decoder_input_ids"]
    answer = json.loads((asked / "train.json").read_text())[0]["answer"][0]
    assert ids[0, :3].tolist() == [world.DECODE, world.VOCABULARY[answer], world.END]
    assert prediction.predict(model.module, batch["inputs"]).shape == (8, len(world.VOCABULARY))


# Answers by classes -----------------------------------------------------------------------------


def test_vilt_gets_a_class_for_each_answer(asked, tmp_path):
    model, task = opened("ViltForQuestionAnswering", tmp_path), registry.get("vqa")
    encoder = model.module.vilt.encoder
    dataset = task.open(Data(dataset=str(asked)), "train", inputs=model.inputs, training=True)
    said = {a for e in json.loads((asked / "train.json").read_text()) for a in e["answer"]}
    fitted = task.fit(model, dataset, None, seed=0)
    view = view_of(fitted.module)
    assert view.classes == sorted(said)
    assert fitted.module.vilt.encoder is encoder
    assert fitted.config["id2label"]["0"] == sorted(said)[0]
    assert heads.num_classes(fitted) == len(said)
    assert task.fit(fitted, dataset, None, seed=0).module is view.module  # named already
    other = registry.get("vqa", {"answers": str(asked / "answers.json")})
    again = other.fit(fitted, dataset, None, seed=0)
    assert view_of(again.module).classes == world.ANSWERS
    soft = vqa.soft_labels([["red", "red", *"abcdefgh"], ["yes"] * 10], ["yes", "red"])
    assert soft.tolist() == [[0, pytest.approx(0.6)], [1, 0]]
    batch = next(iter(batches(asked, again, other)))
    output = other.forward(again.module, batch)
    labels = vqa.soft_labels(batch["people"], world.ANSWERS)
    p = output["logits"].sigmoid()
    wanted = -(labels * p.log() + (1 - labels) * (1 - p).log()).sum(1).mean()
    assert float(other.loss(output, batch)) == pytest.approx(float(wanted), rel=1e-4)


def test_vilt_s_pretrained_encoder_becomes_any_of_its_kinds(tmp_path):
    model = opened("ViltForMaskedLM", tmp_path)
    encoder = model.module.vilt
    for task, kind in (("vqa", "ViltForQuestionAnswering"),
                       ("retrieval", "ViltForImageAndTextRetrieval")):  # fmt: skip
        found = view_of(model.module).fit(task, classes=["yes", "no"])
        assert type(found).__name__ == kind
        assert found.vilt is encoder
        assert found.config.num_hidden_layers == 2
        assert wrapping.wrap(found).head >= {"classifier" if task == "vqa" else "rank_output"}
        assert prediction.predict(found, examples.example(model)).shape == (
            1,
            2 if task == "vqa" else 1,
        )


def test_an_evaluation_leaves_out_questions_without_answers(asked, tmp_path):
    entries = json.loads((asked / "train.json").read_text())
    del entries[0]["answer"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "val.json").write_text(json.dumps(entries))
    data = Data(dataset=str(tmp_path / "data"), augment=QUIET)
    task = registry.get("vqa", {"images": str(asked)})
    model = opened("ViltForQuestionAnswering", tmp_path)
    found = task.open(data, "val", inputs=model.inputs)
    assert found.labelled
    part = base.evaluate(model.module, loader(found, batch_size=8), task)
    whole = base.evaluate(model.module, batches(asked, model, registry.get("vqa")), task)
    assert 0 <= part["vqa_accuracy"] <= 100
    assert part["vqa_accuracy"] * 29 <= whole["vqa_accuracy"] * 30 + 1e-6
    assert not task.open(data, "val", inputs=model.inputs, training=True).labelled


# The server's file ------------------------------------------------------------------------------


def says_left(model, answers: Path, folder: Path, likes: float) -> str:
    """A copy of the model with a class for each answer, which says "left", or never does."""
    task = registry.get("vqa", {"answers": str(answers)})
    data = task.open(Data(dataset=str(answers.parent)), "train", inputs=model.inputs)
    module = task.fit(model, data, None, 0).module
    with torch.no_grad():
        module.classifier[-1].bias[world.ANSWERS.index("left")] = likes
    shutil.copytree(model.ref, folder)
    module.save_pretrained(folder)
    return str(folder)


def test_a_comparison_writes_the_judged_model_s_answers_and_not_the_baseline_s(asked, tmp_path):
    results = tmp_path / "results.json"
    judged, baseline = (
        says_left(opened("ViltForQuestionAnswering", tmp_path), asked / "answers.json",
                  tmp_path / name, likes)
        for name, likes in (("judged", 100), ("baseline", -100))
    )  # fmt: skip
    found = eval_step.run(
        Evaluation(
            NamedModel(judged),
            NamedModel(baseline),
            data=Data(dataset=str(asked), val="train", augment=QUIET),
            task="vqa",
            task_args={"answers": str(asked / "answers.json"), "results": str(results)},
            latency=False,
        )
    )
    assert {row["answer"] for row in json.loads(results.read_text())} == {"left"}
    assert found.metrics != found.baseline["metrics"]
    assert found.baseline["metrics"].keys() == {"vqa_accuracy"}


def test_the_file_for_the_server_has_an_answer_to_each_question(asked, tmp_path):
    questions = json.loads((asked / "train.json").read_text())
    model = opened("ViltForQuestionAnswering", tmp_path)
    file = tmp_path / "sent" / "results.json"
    task = registry.get("vqa", {"results": str(file), "answers": str(asked / "answers.json")})
    data = Data(dataset=str(asked))
    model = task.fit(model, task.open(data, "train", inputs=model.inputs, training=True), None, 0)
    with torch.no_grad():
        model.module.classifier[-1].bias[world.ANSWERS.index("left")] = 100
    assert base.evaluate(model.module, batches(asked, model, task, "test"), task) == {}
    sent = json.loads(file.read_text())
    assert sorted(q["question_id"] for q in questions) == [row["question_id"] for row in sent]
    assert {row["answer"] for row in sent} == {"left"}
    with_answers = base.evaluate(model.module, batches(asked, model, task), task)
    wanted = [by_hand("left", q["answer"]) for q in questions]
    assert with_answers == {"vqa_accuracy": pytest.approx(100 * sum(wanted) / len(wanted))}


# Formats ----------------------------------------------------------------------------------------


def test_visual_genome_has_one_answer_and_a_folder_of_its_own(tmp_path):
    (tmp_path / "vg").mkdir()
    world.draw([world.THINGS[0]], 0)[0].save(tmp_path / "vg" / "1.png")
    entry = {"dataset": "vg", "image": "1.png", "question": "what is it", "answer": "a thing"}
    (tmp_path / "train.json").write_text(json.dumps([entry]))
    model = opened("BlipForQuestionAnswering", tmp_path)
    task = registry.get("vqa", {"images_vg": str(tmp_path / "vg")})
    data = Data(dataset=str(tmp_path), augment=QUIET)
    item = task.open(data, "train", inputs=model.inputs, training=True)[0]
    assert item["weights"] == {"a thing": 0.5}
    assert item["people"] == ["a thing"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image": "a.png"}, "entry 1: no field 'question'"),
        ({"question": "x"}, "entry 1: no field 'image'"),
        ({"image": "a", "question": "x", "dataset": "gqa"}, "'gqa' is neither 'vqa' nor 'vg'"),
        ({"image": "a", "question": "x", "answer": [1]}, "entry 1: 'answer' is no text: 1"),
        ({"image": "a", "question": "x", "answer": [{"answer": "red"}, None]},
         "entry 1: 'answer' is no text: None"),
        ({"image": "a", "question": "x", "question_id": 1.5}, "'question_id' is no identifier"),
    ],
)  # fmt: skip
def test_mistakes_in_files_are_named(tmp_path, entry, message):
    (tmp_path / "train.json").write_text(json.dumps([entry]))
    model = opened("ViltForQuestionAnswering", tmp_path)
    task = registry.get("vqa")
    with pytest.raises(RequestError) as error:
        task.open(Data(dataset=str(tmp_path)), "train", inputs=model.inputs, training=True)
    assert message in str(error.value)


def test_a_question_comes_once(tmp_path):
    entry = {"image": "a", "question": "x", "question_id": 7, "answer": "yes"}
    file = tmp_path / "train.json"
    file.write_text(json.dumps([entry, entry | {"dataset": "vg"}]))  # numbers are a dataset's own
    assert len(formats_questions.read(str(file), "train", {})[0]) == 2
    file.write_text(json.dumps([entry, entry]))
    with pytest.raises(RequestError, match="entry 2: question_id 7 comes twice"):
        formats_questions.read(str(file), "train", {})


def test_questions_without_answers_teach_nothing(asked, tmp_path):
    model, task = opened("BlipForQuestionAnswering", tmp_path), registry.get("vqa")
    batch = next(iter(batches(asked, model, task, "test", training=True)))
    output = task.forward(model.module, batch)
    with pytest.raises(RequestError, match="questions without an answer"):
        task.loss(output, batch)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "expected a list of answers"), ('["yes", "no", "yes"]', "'yes' comes twice"),
     ('["yes", 3]', "is no text: 3")],
)  # fmt: skip
def test_a_list_of_answers_is_checked(asked, tmp_path, content, message):
    (tmp_path / "list.json").write_text(content)
    model = opened("BlipForQuestionAnswering", tmp_path)
    task = registry.get("vqa", {"answers": str(tmp_path / "list.json")})
    with pytest.raises(RequestError, match=message):
        batches(asked, model, task)


# Learning ---------------------------------------------------------------------------------------

RECIPE = """
model = "m"
output = "run"
task = "vqa"
task_args = {{ answers = "answers.json" }}

[data]
dataset = "data"
batch_size = 48

[data.augment]
none = true

[teacher]
epochs = {epochs}
lr = 2e-3
warmup_epochs = 1
eval_every = 100

[decompose]
ratio = {ratio}

[pretrain]
epochs = {heal}
lr = 1e-3
eval_every = 100

[finetune]
epochs = 3
lr = 1e-3
eval_every = 100
"""


def learns(pela, here: Path, kind: str, **values: object) -> dict[str, float]:
    world.model(kind, here / "m")
    world.questions(here / "data", 2)
    world.questions(here / "data", 1, seed=9_000_000, name="val")
    (here / "answers.json").write_text(json.dumps(world.ANSWERS))
    (here / "r.toml").write_text(RECIPE.format(**values))
    code, _, err = pela("run", "r.toml")
    assert code == 0, err
    scores = {}
    task = registry.get("vqa", {"answers": "answers.json"})
    for step in ("dense", "decompose", "pretrain", "finetune"):
        found = loading.load(here / "run" / step)
        on = batches(here / "data", found.opened, task, "val", 48)
        scores[step] = base.evaluate(found.module, on, task)["vqa_accuracy"]
    print(kind, scores)
    assert found.manifest.flops.after < found.manifest.flops.before
    return scores


@pytest.mark.slow
def test_vilt_learns_falls_and_comes_back(pela, here):
    """Always saying "no" is worth 32; knowing colours and places, 68. Plain SVD, as calibration
    leaves too little to heal."""
    scores = learns(pela, here, "ViltForQuestionAnswering", epochs=18, ratio=0.6, heal=6)
    assert scores["dense"] > 60
    assert scores["decompose"] < scores["dense"] - 15
    assert scores["finetune"] > scores["dense"] - 5


@pytest.mark.slow
def test_blip_learns_falls_and_comes_back(pela, here):
    scores = learns(pela, here, "BlipForQuestionAnswering", epochs=14, ratio=0.5, heal=6)
    assert scores["dense"] > 60
    assert scores["decompose"] < scores["dense"] - 15
    assert scores["finetune"] > scores["dense"] - 5
