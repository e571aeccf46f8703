"""Language models: blocks, masks, figures, and healing of a decoder and of a masked one."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from generated_text import FILLERS, KEYS, save_model, tokenizer

from pelacli.artefact import loading
from pelacli.data import loader as data_loader
from pelacli.data import tokens as data_tokens
from pelacli.distillation import cosine, kl
from pelacli.errors import PelaError, RequestError
from pelacli.lowrank import find
from pelacli.measure import agreement
from pelacli.models import prediction
from pelacli.models.inputs import TextInput
from pelacli.recipe.data import Data
from pelacli.recipe.training import Loss, Pretrain
from pelacli.tasks import registry
from pelacli.train.healing import Stage

ENCODER = TextInput(tokenizer(), 64, causal=False)
DECODER = TextInput(tokenizer(decoder=True), 64, causal=True)


def opened(path, inputs, unlabelled=False, split="train", **settings):
    task = registry.get("language-modelling", settings)
    return task.open(Data(dataset=str(path)), split, inputs=inputs, unlabelled=unlabelled)


def chains(count: int, seed: int) -> str:
    """Lines in which every word but the first follows from the one before: k_i → k_(5 i + 1), with
    a random word now and then."""
    dice = random.Random(seed)
    lines = []
    for _ in range(count):
        at, words = dice.randrange(len(KEYS)), []
        for _ in range(14):
            words.append(KEYS[at] if dice.random() < 0.95 else dice.choice(FILLERS))
            at = (5 * at + 1) % len(KEYS)
        lines.append(" ".join(words))
    return "\n".join(lines)


def topics(count: int, seed: int) -> str:
    """Lines of sixty words, four of five of them the same key word."""
    dice = random.Random(seed)
    lines = []
    for _ in range(count):
        key = dice.choice(KEYS)
        lines.append(
            " ".join(key if dice.random() < 0.8 else dice.choice(FILLERS) for _ in range(60))
        )
    return "\n".join(lines)


# Blocks ------------------------------------------------------------------------------------------


def test_blocks_hold_all_tokens_in_order(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("w0 w1 w2 w3 w4\nw5 w6\nw7 w8 w9\n")
    ids = ENCODER.tokenizer.get_vocab()
    end = ids["[SEP]"]
    stream = []
    for line in file.read_text().splitlines():
        stream += [*(ids[word] for word in line.split()), end]
    plain = opened(file, DECODER, block=8)
    assert [plain[i]["inputs"].tolist() for i in range(2)] == [stream[:8], stream[8:]]
    assert plain[0]["labels"].tolist() == [*stream[1:8], -100]
    framed = opened(file, ENCODER, block=8, unlabelled=True)
    assert len(framed) == 3
    assert set(framed[0]) == {"inputs"}
    assert framed[0]["inputs"].tolist() == [ids["[CLS]"], *stream[:6], end]
    batch = next(iter(data_loader.loader(plain, batch_size=2)))
    last = len(stream) - 8
    assert batch["inputs"]["attention_mask"].sum(1).tolist() == [8, last]
    assert (batch["labels"][1, last - 1 :] == -100).all()


def test_masks_depend_on_the_seed_and_are_bert_s(tmp_path):
    (tmp_path / "a.txt").write_text(chains(400, 0))
    dataset = opened(tmp_path / "a.txt", ENCODER, block=32, mask=0.2)
    plain = opened(tmp_path / "a.txt", ENCODER, block=32, unlabelled=True)

    def epoch(number, size, seed=0):
        loader = data_loader.loader(dataset, batch_size=size, seed=seed)
        loader.set_epoch(number)
        batches = list(loader)
        return (torch.cat([b["inputs"]["input_ids"] for b in batches[:-1]]),
                torch.cat([b["labels"] for b in batches[:-1]]))  # fmt: skip

    hidden, labels = epoch(0, 4)
    again, same = epoch(0, 4)
    assert torch.equal(hidden, again)
    assert torch.equal(labels, same)
    rows = epoch(0, 2)[0]  # whatever the batch is
    assert torch.equal(rows[: len(hidden)], hidden)
    assert not torch.equal(epoch(1, 4)[0], hidden)
    assert not torch.equal(epoch(0, 4, seed=1)[0], hidden)
    true = torch.stack([plain[i]["inputs"] for i in range(len(hidden))])
    chosen = labels != -100
    assert torch.equal(labels[chosen], true[chosen])
    assert torch.equal(hidden[~chosen], true[~chosen])
    special = torch.isin(true, torch.tensor(ENCODER.tokenizer.all_special_ids))
    assert not (chosen & special).any()
    share = chosen.sum() / (~special).sum()
    assert 0.18 < share < 0.22
    masks = (hidden[chosen] == ENCODER.tokenizer.mask_token_id).float().mean()
    kept = (hidden[chosen] == true[chosen]).float().mean()
    assert 0.76 < masks < 0.84
    assert 0.07 < kept < 0.14


def test_figures_are_those_of_the_formulas():
    output = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 7, (3, 5), generator=torch.Generator().manual_seed(1))
    labels[:, 3:] = -100
    labels[1] = -100
    task = registry.get("language-modelling")
    terms, right = [], []
    for b, n in ((b, n) for b in (0, 2) for n in range(3)):
        logits = output[b, n].double().numpy()
        terms.append(np.log(np.exp(logits).sum()) - logits[labels[b, n]])
        right.append(logits.argmax() == int(labels[b, n]))
    assert float(task.loss(output, {"labels": labels})) == pytest.approx(np.mean(terms), rel=1e-5)
    judge = task.metrics(None)
    for row in range(3):
        judge.update(output[row : row + 1], {"labels": labels[row : row + 1]})
    found = judge.compute()
    assert found["loss"] == pytest.approx(np.mean(terms), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(np.mean(terms)), rel=1e-4)
    assert found["accuracy"] == pytest.approx(100 * np.mean(right), abs=1e-3)
    nothing = {"labels": torch.full((3, 5), -100)}
    assert task.loss(output.requires_grad_(), nothing).item() == 0


def test_the_loss_of_a_decoder_is_transformers_own(here):
    save_model("gpt2", "CausalLM", here / "model")
    model, _ = loading.open("model")
    Path("a.txt").write_text(chains(5, 0))
    task = registry.get("language-modelling", {"block": 16})
    dataset = task.open(Data(dataset="a.txt"), "train", inputs=model.inputs)
    batch = next(iter(data_loader.loader(dataset, batch_size=3)))
    with torch.no_grad():
        ids = batch["inputs"]["input_ids"]
        theirs = model.module(**batch["inputs"], labels=ids).loss
        ours = task.loss(task.forward(model.module, batch), batch)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_divergence_by_its_formula():
    student, teacher = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)).double()
    total = 0.0
    for s, t in zip(student.numpy() / 2, teacher.numpy() / 2, strict=True):
        p, q = np.exp(t) / np.exp(t).sum(), np.exp(s) / np.exp(s).sum()
        total += (p * np.log(p / q)).sum()
    found = kl.loss(student.view(2, 3, 5), teacher.view(2, 3, 5), Loss(temperature=2.0))
    assert float(found) == pytest.approx(4 * total / 6, rel=1e-5)
    assert float(kl.loss(teacher, teacher, Loss())) == pytest.approx(0, abs=1e-6)
    angle = F.cosine_similarity(student, teacher).mean()
    assert float(cosine.loss(student, teacher)) == pytest.approx(1 - float(angle), rel=1e-5)
    with pytest.raises(PelaError):
        kl.loss(student, teacher[:, :4], Loss())
    with pytest.raises(RequestError, match="only one output"):
        kl.loss(student[:, :1], teacher[:, :1], Loss())


def test_agreement_leaves_padding_out(here):
    save_model("gpt2", "CausalLM", here / "model")
    dense, _ = loading.open("model")
    other, _ = loading.open("model")
    for parameter in other.module.parameters():
        parameter.data.mul_(1.1)
    tokens = data_tokens.Tokens.of(dense.inputs, "x")
    texts = ["w1 w2 k3 k4 w5 w6", "w1"], ["k2 k3"]
    batches = [{"inputs": tokens(some)} for some in texts]
    found = agreement.agreement(other.module, dense.module, batches, prediction.predict)
    cosines, same = [], []
    with torch.no_grad():
        for text in (t for some in texts for t in some):  # alone, without any padding
            alone = tokens([text])
            y, z = (
                prediction.predict(other.module, alone)[0],
                prediction.predict(dense.module, alone)[0],
            )
            cosines += F.cosine_similarity(y, z).tolist()
            same += (y.argmax(1) == z.argmax(1)).tolist()
    assert len(cosines) == 9
    assert found["cosine"] == pytest.approx(np.mean(cosines), abs=1e-5)
    assert found["same_class"] == pytest.approx(100 * np.mean(same), abs=1e-3)


def test_padding_is_not_distilled(here):
    save_model("gpt2", "CausalLM", here / "model")
    teacher, student = loading.open("model")[0], loading.open("model")[0]
    for parameter in student.module.parameters():
        parameter.data.mul_(1.1)
    tokens = data_tokens.Tokens.of(student.inputs, "x")
    texts = ["w1 w2 k3 k4 w5 w6", "w1 k2"]
    section = Pretrain(loss={"feature": 1.0, "kl": 1.0}, taps=[r"transformer\.h\.\d"])
    stage = Stage(section, student, teacher, registry.get("language-modelling"), labelled=False)
    found = stage.losses(student.module, {"inputs": tokens(texts)})
    squares, terms = [], []
    with torch.no_grad():
        for text in texts:  # alone, without any padding
            alone = tokens([text])
            ours = student.module(**alone, output_hidden_states=True)
            theirs = teacher.module(**alone, output_hidden_states=True)
            log_p, log_q = theirs.logits[0].log_softmax(-1), ours.logits[0].log_softmax(-1)
            terms += (log_p.exp() * (log_p - log_q)).sum(-1).tolist()
            squares.append((ours.hidden_states[1] - theirs.hidden_states[1]).square().flatten())
    assert len(terms) == 8
    assert float(found["kl"].detach()) == pytest.approx(np.mean(terms), rel=1e-4)
    first = Stage(
        section.model_copy(update={"taps": [r"transformer\.h\.0"]}),
        student, teacher, registry.get("language-modelling"), labelled=False,
    )  # fmt: skip
    feature = first.losses(student.module, {"inputs": tokens(texts)})["feature"].detach()
    assert float(feature) == pytest.approx(float(torch.cat(squares).mean()), rel=1e-4)


def test_models_and_settings_that_do_not_fit_are_refused(pela, here):
    (here / "a.txt").write_text("w1 w2\n")
    with pytest.raises(RequestError, match="block: 65 tokens are more than the 64"):
        opened("a.txt", ENCODER, block=65)
    with pytest.raises(RequestError, match="its tokenizer has no mask"):
        opened("a.txt", TextInput(tokenizer(decoder=True), 64, causal=False))
    save_model("bert", "", here / "model")
    bare, _ = loading.open("model")
    dataset = opened("a.txt", bare.inputs)
    batch = next(iter(data_loader.loader(dataset, batch_size=1)))
    task = registry.get("language-modelling")
    with pytest.raises(RequestError, match="BertModel has no output for tokens"):
        task.forward(bare.module, batch)
    save_model("bert", "SequenceClassification", here / "classifier", num_labels=4)
    code, _, err = pela("eval", "classifier", "--data", "a.txt", "--task", "language-modelling")
    assert (code, "BertForSequenceClassification has no output for tokens" in err) == (2, True)
    fitted = task.fit(bare, dataset, None, 0)
    assert type(fitted.module).__name__ == "BertForMaskedLM"
    assert fitted.module.bert.encoder.layer[1] is not None
    embeddings = fitted.module.bert.embeddings.word_embeddings.weight
    assert fitted.module.cls.predictions.decoder.weight is embeddings
    assert embeddings is bare.module.embeddings.word_embeddings.weight


@pytest.mark.parametrize(("family", "kind"), [("llama", "CausalLM"), ("bert", "MaskedLM")])
def test_a_language_model_is_judged_by_its_tokens_where_no_task_is_named(pela, here, family, kind):
    save_model(family, kind, here / "model")
    (here / "a.txt").write_text(chains(9, 1))
    code, out, err = pela("eval", "model", "--data", "a.txt", "--json", "--no-latency")
    assert code == 0, err
    assert {"accuracy", "loss", "perplexity"} == set(json.loads(out)[0]["metrics"])


def test_a_backbone_of_texts_is_compared_alone(pela, here):
    save_model("llama", "", here / "model")
    (here / "a.txt").write_text(chains(9, 1))
    code, out, err = pela("eval", "model", "--data", "a.txt", "--json", "--no-latency")
    assert code == 0, err
    assert json.loads(out)[0]["metrics"] == {}


# Every family ------------------------------------------------------------------------------------

# family → (linear maps that may be factorised, blocks)
FAMILIES = {
    "bert": (12, 2), "roberta": (12, 2), "mpnet": (12, 2), "distilbert": (12, 2),
    "modernbert": (8, 2), "gpt2": (8, 2), "llama": (14, 2),
}  # fmt: skip


# Encoders that differ from BERT in their embeddings alone take their time with the slow tests.
_SLOW = {"roberta", "mpnet", "distilbert"}


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[pytest.mark.slow] if f in _SLOW else []) for f in FAMILIES]
)
def test_the_pipeline_runs_and_reloads(family, pela, here):
    kind = "CausalLM" if family in ("gpt2", "llama") else "MaskedLM"
    save_model(family, kind, here / "model")
    (here / "data").mkdir()
    (here / "data" / "train.txt").write_text(chains(60, 0))
    (here / "data" / "validation.txt").write_text(chains(9, 1))
    lr = "'auto'" if family in ("bert", "llama") else 1e-3  # one of each kind looks for its rate
    Path("r.toml").write_text(
        'model = "model"\noutput = "run"\ntask = "language-modelling"\n'
        "task_args = { block = 32 }\n"
        '[data]\ndataset = "data"\nbatch_size = 8\n'
        '[decompose]\nratio = 0.5\nscope = "layers"\ncalibrate = "train"\nsamples = 16\n'
        f"[pretrain]\nsteps = 2\nlr = {lr}\n[pretrain.loss]\nkl = 1.0\n"
        "[finetune]\nsteps = 2\n[eval]\n"
    )
    code, out, err = pela("run", "r.toml", "--json")
    assert code == 0, err
    done = json.loads(out)["eval"]
    assert {"accuracy", "loss", "perplexity"} == set(done["metrics"])
    assert {"cosine", "same_class"} <= set(done["agreement"])
    for name in ("decompose", "pretrain", "finetune"):
        back = loading.load(here / "run" / name)
        module, rows = back.module, back.manifest.layers
        maps, depth = FAMILIES[family]
        head = [
            row for row in rows if row.reason and ("head" in row.reason or "tied" in row.reason)
        ]
        inner = [row for row in rows if row not in head]
        assert len(inner) == maps
        assert len(find.low_rank_layers(module)) == sum(row.rank is not None for row in inner)
        assert head
        assert back.manifest.params.after == sum(p.numel() for p in module.parameters())
        if family != "llama":  # whose output is a matrix of its own
            output = module.get_output_embeddings().weight
            assert output is module.get_input_embeddings().weight
    dense, _ = loading.open("model")
    stage = Stage(Pretrain(), back.opened, dense, registry.get("language-modelling"), labelled=True)
    assert len(stage.taps) == depth
    code, out, err = pela("report", "run/decompose", "--json")
    assert code == 0, err
    assert json.loads(out)[0]["flops"]["after"] < json.loads(out)[0]["flops"]["before"]


# Learning ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind", "text", "ratio", "healing", "margin"),
    [
        ("gpt2", "CausalLM", chains, 0.12, "labels = false\nepochs = 5", 3),
        ("bert", "MaskedLM", topics, 0.13, "epochs = 8", 5),
    ],
)
def test_it_learns_falls_and_comes_back(family, kind, text, ratio, healing, margin, pela, here):
    save_model(family, kind, here / "model")
    (here / "data").mkdir()
    lines = 600 if family == "gpt2" else 200
    (here / "data" / "train.txt").write_text(text(lines, 0))
    (here / "data" / "validation.txt").write_text(text(lines // 5, 1))
    Path("r.toml").write_text(
        'model = "model"\noutput = "run"\ntask = "language-modelling"\n'
        "task_args = { block = 32 }\n"
        '[data]\ndataset = "data"\nbatch_size = 16\n'
        "[teacher]\nepochs = 6\nlr = 1e-2\nwarmup_epochs = 1\neval_every = 20\n"
        f'[decompose]\nratio = {ratio}\nscope = "layers"\npolicy = "uniform"\n'
        f"[pretrain]\n{healing}\nlr = 5e-3\neval_every = 20\n"
        "[pretrain.loss]\nfeature = 1.0\nkl = 1.0\n"
    )
    code, _, err = pela("run", "r.toml")
    assert code == 0, err
    found = {}
    for name in ("dense", "decompose", "pretrain"):
        code, out, err = pela("eval", f"run/{name}", "--no-latency", "--json")
        assert code == 0, err
        found[name] = json.loads(out)[0]["metrics"]
    # Measured: 79.3, 5.2, 78.9 of the decoder; 72.2, 28.9, 70.8 of the masked model.
    accuracy = {name: figures["accuracy"] for name, figures in found.items()}
    assert accuracy["dense"] > 65
    assert accuracy["decompose"] < accuracy["dense"] - 20
    assert accuracy["pretrain"] > accuracy["dense"] - margin
    assert found["pretrain"]["perplexity"] < found["decompose"]["perplexity"]
