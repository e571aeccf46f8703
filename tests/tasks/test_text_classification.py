"""Texts and labels: files, numbering, figures, heads, and that a tiny encoder really learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from generated_text import SETTINGS, counted, labelled, save_model, tokenizer, write
from scipy import stats
from sklearn import metrics as sk

from pelacli.artefact import loading
from pelacli.data import loader
from pelacli.data.formats.text import Columns, open_texts
from pelacli.errors import RequestError
from pelacli.lowrank import find
from pelacli.manifest import document
from pelacli.models import heads, opening, prediction
from pelacli.models.inputs import TextInput
from pelacli.recipe.schema import Data
from pelacli.tasks import base, registry

TEXT = TextInput(tokenizer(), 64)
RECIPE = """
model = "model"
output = "run"
task = "text-classification"

[data]
dataset = "data"
batch_size = 50

[teacher]
epochs = 12
lr = 5e-3
warmup_epochs = 1
eval_every = 20

[decompose]
ratio = {ratio}
scope = "layers"
policy = "uniform"

[pretrain]
epochs = 5
lr = 3e-3
eval_every = 20

[finetune]
epochs = 6
lr = 3e-3
eval_every = 20
"""


def figures(pela, ref, *more):
    code, out, err = pela("eval", ref, "--no-latency", "--json", *more)
    assert code == 0, err
    return json.loads(out)["metrics"]


def test_a_headless_encoder_learns_falls_and_comes_back(pela, here):
    save_model("bert", "", here / "model")
    write(here / "data" / "train.jsonl", labelled(1000, 0))
    write(here / "data" / "validation.jsonl", labelled(300, 1))
    Path("r.toml").write_text(RECIPE.format(ratio=0.12))
    code, _, err = pela("run", "r.toml")
    assert code == 0, err
    steps = ("dense", "decompose", "pretrain", "finetune")
    found = {name: figures(pela, f"run/{name}")["accuracy"] for name in steps}
    # Measured: 100, 19, 56 and 90; at rank 1 of 32 something is lost for good.
    assert found["dense"] > 95
    assert found["decompose"] < found["dense"] - 50
    assert found["pretrain"] > found["decompose"] + 15
    assert found["finetune"] > found["dense"] - 15


# Heads -------------------------------------------------------------------------------------------

FAMILIES = ["bert", "roberta", "mpnet", "modernbert", "distilbert", "gpt2", "llama"]


def decomposed(pela, kind, family):
    """A directory, and the artefact of half of it."""
    save_model(family, kind, Path("model"))
    code, _, err = pela("decompose", "model", "--ratio", "0.5", "--scope", "layers", "-o", "small")
    assert code == 0, err
    return loading.load(Path("small"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["", "LM"])
def test_a_head_around_a_compressed_model(pela, here, family, kind):
    if kind:
        kind = "CausalLM" if family in ("gpt2", "llama") else "MaskedLM"
    before = decomposed(pela, kind, family)
    factors = {id(m) for m in find.low_rank_layers(before.module).values()}
    inner = [row for row in before.manifest.layers if row.rank is not None]
    train = write(here / "train.jsonl", labelled(40, 0))
    Path("r.toml").write_text(
        f'model = "small"\noutput = "run"\ntask = "text-classification"\n[data]\n'
        f'dataset = "{train}"\nbatch_size = 8\n[finetune]\nsteps = 2\n'
    )
    task = registry.get("text-classification")
    found = task.open(Data(dataset=str(train)), "train", inputs=before.opened.inputs)
    fitted = task.fit(before.opened, found, None, 0)
    kept = find.low_rank_layers(fitted.module)
    assert kept
    assert {id(m) for m in kept.values()} <= factors  # the very modules
    assert heads.num_classes(fitted) == 4

    code, _, err = pela("finetune", "r.toml")
    assert code == 0, err
    back = loading.load(Path("run/finetune"))
    assert type(back.module).__name__.endswith("ForSequenceClassification")
    assert back.opened.inputs.classes == ("blue", "green", "red", "yellow")
    rows = [row for row in back.manifest.layers if row.rank is not None]
    assert {row.name for row in rows} == set(find.low_rank_layers(back.module))
    # All but what the class has no place for: a pooler, or the other head's layer.
    assert len(inner) - 1 <= len(rows) <= len(inner)
    assert back.manifest.params.after == back.opened.params
    assert back.manifest.flops is not None
    with torch.no_grad():
        batch = next(iter(loader.loader(found, batch_size=3)))
        assert prediction.predict(back.module, batch["inputs"]).shape == (3, 4)


def test_a_head_that_fits_stays_and_another_gets_its_data(pela, here):
    save_model("roberta", "SequenceClassification", here / "model", num_labels=4)
    opened, _ = loading.open("model")
    train = write(here / "train.jsonl", labelled(40, 0))
    task = registry.get("text-classification")
    found = task.open(Data(dataset=str(train)), "train", inputs=opened.inputs)
    assert task.fit(opened, found, None, 0) is opened
    wider = task.fit(opened, found, 6, 0)
    assert heads.num_classes(wider) == 6
    # The dense layer before the outputs is as it was; only the outputs are fresh.
    assert wider.module.classifier.dense is opened.module.classifier.dense
    assert wider.head == {"classifier"}


def test_images_have_no_text_head(here):
    train = write(here / "train.jsonl", labelled(4, 0))
    task = registry.get("text-classification")
    opened = opening.open("test_vit", weights="random")
    with pytest.raises(RequestError, match="about texts, and the model reads none"):
        task.open(Data(dataset=str(train)), "train", inputs=opened.inputs)
    found = task.open(Data(dataset=str(train)), "train", inputs=TEXT)
    opened.inputs = TEXT
    with pytest.raises(RequestError, match="timm has no text models"):
        task.fit(opened, found, None, 0)


# Numbering ---------------------------------------------------------------------------------------


def lines(path, *rows):
    return write(path, [dict(zip(("text", "label"), row, strict=True)) for row in rows])


def test_all_splits_number_as_training_does(tmp_path):
    lines(tmp_path / "train.jsonl", ("a", "no"), ("b", "yes"), ("c", "maybe"))
    lines(tmp_path / "validation.jsonl", ("d", "yes"), ("e", "no"))
    held_out = open_texts(str(tmp_path), "val")
    assert held_out.classes == ["maybe", "no", "yes"]
    assert held_out.labels == [2, 1]  # by itself it would say 1, 0
    lines(tmp_path / "validation.jsonl", ("d", "yes"), ("e", "never"))
    with pytest.raises(RequestError, match=r"validation.jsonl, entry 2: label 'never'.*maybe, no"):
        open_texts(str(tmp_path), "val")


def test_numbers_are_classes_of_the_training_split(tmp_path):
    lines(tmp_path / "train.jsonl", ("a", 0), ("b", 3), ("c", -1))
    lines(tmp_path / "test.jsonl", ("d", 1))
    train = open_texts(str(tmp_path), "train")
    assert (len(train), train.labels) == (2, [0, 3])  # -1 is no label
    assert train.classes == open_texts(str(tmp_path), "test").classes == ["0", "1", "2", "3"]
    lines(tmp_path / "test.jsonl", ("d", 4))
    with pytest.raises(RequestError, match=r"entry 1: label 4 is no class of the training split"):
        open_texts(str(tmp_path), "test")
    lines(tmp_path / "test.jsonl", ("d", -1))
    assert open_texts(str(tmp_path), "test").labels is None


def test_places_are_no_classes_where_those_have_names(tmp_path):
    lines(tmp_path / "train.jsonl", ("a", "no"), ("b", "yes"), ("c", "1"))
    for label in (0, "2", 1.0):
        lines(tmp_path / "validation.jsonl", ("d", "1"), ("e", label))
        told = rf"validation.jsonl, entry 2: label {label!r} is no class .*, which has 1, no, yes"
        with pytest.raises(RequestError, match=told):
            open_texts(str(tmp_path), "val")


def test_a_training_split_without_labels_leaves_the_numbering_to_the_others(tmp_path):
    (tmp_path / "train.txt").write_text("a\nb\n")
    (tmp_path / "validation.csv").write_text("text,label\nc,yes\nd,no\n")
    texts = open_texts(str(tmp_path), "val")
    assert (texts.labels, texts.classes) == ([1, 0], ["no", "yes"])
    (tmp_path / "train.txt").unlink()
    lines(tmp_path / "train.jsonl", ("a", -1), ("b", ""))
    assert open_texts(str(tmp_path), "val").labels == [1, 0]


def test_a_split_is_one_file(tmp_path):
    for name in ("train.csv", "validation.csv"):
        (tmp_path / name).write_text("text,label\na,yes\n")
    lines(tmp_path / "train.jsonl", ("b", "no"))
    for split in ("train", "validation"):  # classes are numbered by the training split
        with pytest.raises(RequestError, match=r"train.csv and train.jsonl are all the split"):
            open_texts(str(tmp_path), split)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\na,yes\n"),
        ("a.tsv", "text\tlabel\na\tyes\n"),
        ("a.jsonl", '{"text": "a", "label": "yes"}\n'),
        ("a.txt", "a\n"),
    ],
)
def test_a_file_may_begin_with_a_mark(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    label = None if name == "a.txt" else 0
    assert open_texts(str(tmp_path / name), "train")[0] == ("a", label)


def test_the_models_own_names_come_first(tmp_path):
    file = lines(tmp_path / "a.jsonl", ("a", "neutral"), ("b", "entailment"))
    order = ("ENTAILMENT", "NEUTRAL", "CONTRADICTION")
    texts = open_texts(str(file), "train", order=order)
    assert texts.labels == [1, 0]
    assert texts.classes == list(order)
    other = open_texts(str(file), "train", order=("cat", "dog"))
    assert other.classes == ["entailment", "neutral"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"text": "a", "label": 1}\n{"text": "b", "label": ""}\n', "entry 2: no 'label'"),
        ('{"text": "a", "label": 1.5}\n{"text": "b", "label": 2}\n', "are scores, no classes"),
        ('{"text": "a", "label": -3}\n', "label -3 is no class"),
        ('{"text": 5}\n', "entry 1: 'text' is not a text but int"),
        ("[1]\n", "line 1: not a JSON object"),
        ('{"premise": "a"}\n', "no field 'text'.*it has premise"),
    ],
)
def test_bad_files_are_told_in_a_line(tmp_path, content, told):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(RequestError, match=told) as error:
        next(iter(open_texts(str(tmp_path / "a.jsonl"), "train")))
    assert "a.jsonl" in str(error.value)
    assert "\n" not in str(error.value)


def test_columns(tmp_path):
    (tmp_path / "q.tsv").write_text('question\tsentence\tlabel\nwho "is\tit\tyes\nwhat\tis\tno\n')
    texts = open_texts(str(tmp_path / "q.tsv"), "train")
    assert texts[0] == (('who "is', "it"), 1)
    mine = open_texts(str(tmp_path / "q.tsv"), "train", Columns(("sentence",), "question"))
    assert mine[1] == ("is", 0)
    with pytest.raises(RequestError, match="no column 'premise'; it has question, sentence, label"):
        open_texts(str(tmp_path / "q.tsv"), "train", Columns(("premise",)))
    with pytest.raises(RequestError, match=r"task_args.text: name one column, or two"):
        registry.get("text-classification", {"text": ["a", "b", "c"]})


def test_a_pair_is_read_as_one(tmp_path):
    rows = [{"premise": "w1 w2", "hypothesis": "k1", "label": 0}, {
        "premise": "w3", "hypothesis": "k2 k3", "label": 1}]  # fmt: skip
    file = write(tmp_path / "a.jsonl", rows)
    task = registry.get("text-classification")
    dataset = task.open(Data(dataset=str(file)), "train", inputs=TEXT)
    batch = next(iter(loader.loader(dataset, batch_size=2)))
    words = TEXT.tokenizer.convert_ids_to_tokens(batch["inputs"]["input_ids"][0].tolist())
    assert words == ["[CLS]", "w1", "w2", "[SEP]", "k1", "[SEP]"]
    assert batch["inputs"]["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1]
    assert batch["labels"].tolist() == [0, 1]


def test_a_hub_dataset_declares_its_classes(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    features = datasets.Features(
        sentence1=datasets.Value("string"),
        sentence2=datasets.Value("string"),
        label=datasets.ClassLabel(names=["2 stars", "1"]),
    )
    rows = {"sentence1": ["a", "b", "c"], "sentence2": ["d", "e", "f"], "label": [1, -1, 0]}
    made = datasets.Dataset.from_dict(rows, features=features)
    (tmp_path / "data").mkdir()
    made.to_parquet(tmp_path / "data" / "train.parquet")
    texts = open_texts(f"hfds/{tmp_path / 'data'}", "train")
    assert texts.classes == ["2 stars", "1"]
    assert [texts[i] for i in range(len(texts))] == [(("a", "d"), 1), (("c", "f"), 0)]


def test_hub_splits_number_as_the_whole_training_split_does(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    made = {
        "both": {
            "train": {"text": list("abcd"), "label": ["b", "c", "a", "c"]},
            "validation": {"text": ["e"], "label": ["c"]},
        },
        "bare": {
            "train": {"text": ["a"]},
            "test": {"text": list("bcd"), "label": ["z", "y", "x"]},
        },
        "alone": {"test": {"text": list("bcd"), "label": ["z", "y", "x"]}},
    }
    for name, splits in made.items():
        for split, rows in splits.items():
            file = tmp_path / name / f"{split}.parquet"
            file.parent.mkdir(exist_ok=True)
            datasets.Dataset.from_dict(rows).to_parquet(file)
    for name, split, labels, names in [
        ("both", "train[:50%]", [1, 2], list("abc")),
        ("both", "validation", [2], list("abc")),
        ("alone", "test[:2]", [2, 1], list("xyz")),
    ]:
        texts = open_texts(f"hfds/{tmp_path / name}", split)
        assert (texts.labels, texts.classes) == (labels, names)
    with monkeypatch.context() as patch:  # files of one form have the same columns in all splits
        tables = {k: datasets.Dataset.from_dict(v) for k, v in made["bare"].items()}
        patch.setattr(datasets, "get_dataset_split_names", lambda *_: list(tables))
        patch.setattr(datasets, "load_dataset", lambda *_, split: tables[split])
        assert open_texts("hfds/bare", "test").labels == [2, 1, 0]


def test_a_hub_dataset_may_have_a_configuration(monkeypatch):
    import datasets

    asked = []
    rows = datasets.Dataset.from_dict({"sentence": ["a"], "label": ["x"]})
    monkeypatch.setattr(
        datasets, "get_dataset_split_names", lambda *a: asked.append(a) or ["train"]
    )
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a, split: asked.append((*a, split)) or rows
    )
    assert open_texts("hfds/nyu-mll/glue/sst2", "train")[0] == ("a", 0)
    assert asked == [("nyu-mll/glue", "sst2"), ("nyu-mll/glue", "sst2", "train")]


# Figures -----------------------------------------------------------------------------------------


def test_the_figures_are_sklearns():
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(200, 3, generator=generator)
    labels = torch.randint(0, 3, (200,), generator=generator)
    labels[:90] = output[:90].argmax(1)
    judge = registry.get("text-classification").metrics(3)
    for part in range(0, 200, 64):
        judge.update(output[part : part + 64], {"labels": labels[part : part + 64]})
    found, chosen = judge.compute(), output.argmax(1)
    assert found["accuracy"] == pytest.approx(100 * sk.accuracy_score(labels, chosen), abs=1e-4)
    assert found["f1"] == pytest.approx(
        100 * sk.f1_score(labels, chosen, average="macro"), abs=1e-4
    )
    assert found["matthews"] == pytest.approx(100 * sk.matthews_corrcoef(labels, chosen), abs=1e-3)
    logs = -torch.log(torch.softmax(output.double(), 1))[torch.arange(200), labels]
    assert found["loss"] == pytest.approx(logs.mean().item(), abs=1e-5)


def test_scores_are_met_by_one_output(pela, here):
    save_model("bert", "", here / "model")
    rows = [
        {"sentence1": text, "sentence2": "w1", "score": keys / 2} for text, keys in counted(300, 0)
    ]
    write(here / "data" / "train.jsonl", rows[:240])
    write(here / "data" / "validation.jsonl", rows[240:])
    Path("r.toml").write_text(
        'model = "model"\noutput = "run"\ntask = "text-regression"\n[data]\ndataset = "data"\n'
        "batch_size = 30\n[finetune]\nepochs = 6\nlr = 5e-3\neval_every = 20\n[eval]\n"
    )
    code, _, err = pela("run", "r.toml")
    assert code == 0, err
    back = loading.load(Path("run/finetune"))
    assert heads.num_classes(back.opened) == 1
    task = registry.get("text-regression")
    dataset = task.open(Data(dataset="data"), "validation", inputs=back.opened.inputs)
    found = base.evaluate(back.module, loader.loader(dataset, batch_size=16), task)
    assert found["spearman"] > 80
    with torch.no_grad():
        outputs = torch.cat(
            [
                prediction.predict(back.module, b["inputs"])
                for b in loader.loader(dataset, batch_size=60)
            ]
        )[:, 0]
    wanted = [row["score"] for row in rows[240:]]
    rank = stats.spearmanr(outputs, wanted).statistic
    assert found["spearman"] == pytest.approx(100 * rank, abs=1e-3)
    assert found["pearson"] == pytest.approx(
        100 * stats.pearsonr(outputs, wanted).statistic, abs=1e-2
    )
    assert document.read(Path("run/finetune")).history[-1].metrics["spearman"] > 80
    code, _, err = pela("eval", "run/finetune", "--task", "text-classification", "--no-latency")
    assert (code, "are scores, no classes" in err) == (2, True)


def test_every_family_is_set_up_here():
    assert set(FAMILIES) == set(SETTINGS)
