"""ALBEF's objectives: each loss by hand, momentum, queues, and that they can be learned."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from albef_tiny import batch, pairs, tiny
from launched import by_torchrun

from pelacli.errors import RequestError
from pelacli.lowrank import find, replace
from pelacli.models.albef import momentum, objectives
from pelacli.models.albef.network import head_names
from pelacli.system import processes


def low_rank(network, rank=6):
    factors = {}
    for layer in find.find_layers(network, head=head_names(network)):
        if layer.reason is None:
            u, s, v = torch.linalg.svd(layer.weight, full_matrices=False)
            down, up = s[:rank, None].sqrt() * v[:rank], u[:, :rank] * s[:rank].sqrt()
            factors[layer.name] = (down, up, layer.bias)
    replace.replace(network, factors)
    return network


def losses(network, data):
    return objectives.pretraining(network, objectives.passes(network, data), data)


# Each loss by hand --------------------------------------------------------------------------------


def test_contrast_by_hand():
    network, data = tiny().eval(), batch(4)
    slow = momentum.attach(network, queue=8, weight=0.4)
    with torch.no_grad():  # copies that differ from the network
        for p in slow.network.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    inputs, temp = data["inputs"], 0.07

    def features(net):
        image, text = net.embed_images(inputs["pixel_values"]), net.embed_texts(
            inputs["input_ids"], inputs["attention_mask"])  # fmt: skip
        image, text = net.vision_proj(image[:, 0]), net.text_proj(text[:, 0])
        return image / image.norm(dim=1, keepdim=True), text / text.norm(dim=1, keepdim=True)

    (image, text), (image_m, text_m) = features(network), features(slow.network)
    total = 0.0
    for ours, ours_m, keys, queue in (
        (image, image_m, text_m, slow.texts), (text, text_m, image_m, slow.images)
    ):  # fmt: skip
        keys = torch.cat([keys, queue])
        for b in range(4):
            scores = ours[b] @ keys.T / temp
            soft = ours_m[b] @ keys.T / temp
            target = 0.4 * soft.exp() / soft.exp().sum()
            target[b] += 0.6
            total = total - (target * (scores - scores.exp().sum().log())).sum() / 4 / 2
    assert torch.allclose(losses(network, data)["contrast"], total, atol=1e-5)


def test_contrast_with_several_texts_of_one_image():
    similar = torch.tensor([[2.0, 1.0, 0.0], [0.5, 0.0, 1.0], [0.0, 0.0, 3.0]])
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    chances = similar.exp() / similar.exp().sum(1, keepdim=True)
    expected = (
        -(
            (chances[0, 0].log() + chances[0, 1].log()) / 2
            + (chances[1, 0].log() + chances[1, 1].log()) / 2
            + chances[2, 2].log()
        )
        / 3
    )
    assert torch.allclose(objectives.contrast_loss(similar, same, None, 0), expected)


def test_words_by_hand():
    logits, soft = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    labels = torch.tensor([[-100, 4, -100], [1, -100, 0]])
    log, told = logits.log_softmax(-1), soft.softmax(-1)
    each = {}
    for b, t in ((0, 1), (1, 0), (1, 2)):
        hard = -log[b, t, labels[b, t]]
        each[b, t] = 0.6 * hard - 0.4 * (told[b, t] * log[b, t]).sum()
    found = objectives.words_loss(logits, labels, soft, 0.4)
    assert torch.allclose(found, sum(each.values()) / 3)
    apart = objectives.words_loss(logits, labels, soft, 0.4, reduce=False)
    assert apart.shape == (2, 3)
    assert all(torch.allclose(apart[at], value) for at, value in each.items())
    assert apart.count_nonzero() == 3
    nothing = objectives.words_loss(logits, torch.full((2, 3), -100), soft, 0.4)
    assert nothing == 0


def test_answers_are_weighted_and_summed():
    network = tiny("vqa").eval()
    inputs = pairs(2)
    ids = torch.tensor([[1, 9, 2, 0], [1, 8, 7, 2], [1, 6, 2, 0]])
    data = {
        "inputs": inputs, "answer_ids": ids, "answer_mask": (ids != 0).long(),
        "answer_of": torch.tensor([0, 0, 1]), "answer_weights": torch.tensor([0.75, 0.25, 1.0]),
    }  # fmt: skip
    fused = network(**inputs)["last_hidden_state"]
    total = 0.0
    for row, of, weight in ((0, 0, 0.75), (1, 0, 0.25), (2, 1, 1.0)):
        answer = ids[row][ids[row] != 0][None]
        logits = network.decode(
            answer, torch.ones_like(answer), fused[of][None], inputs["attention_mask"][of][None]
        )[0].log_softmax(-1)
        for i in range(answer.shape[1] - 1):
            total = total - weight * logits[i, answer[0, i + 1]] / 2
    assert torch.allclose(objectives.answers(network, data), total, atol=1e-5)


def test_matching_sees_each_pair_and_two_false_ones(monkeypatch):
    network, data = tiny().eval(), batch(4)
    seen = {}

    def match(text, mask, image):
        seen.update(text=text, mask=mask, image=image)
        return network.itm_head(network.fuse(text, mask, image)[:, 0])

    monkeypatch.setattr(network, "match", match)
    found = objectives.passes(network, data)
    value = objectives.pretraining(network, found, data)["matching"]
    assert len(seen["text"]) == 12
    own = [
        [torch.equal(found.image[j], row) for j in range(4)].index(True) for row in seen["image"]
    ]
    said = [[torch.equal(found.text[j], row) for j in range(4)].index(True) for row in seen["text"]]
    assert own[:4] == said[:4] == [0, 1, 2, 3]
    assert said[4:8] == own[8:] == [0, 1, 2, 3]
    assert all(i != t for i, t in zip(own[4:], said[4:], strict=True))
    logits = network.itm_head(network.fuse(**{k: seen[k] for k in ("text", "mask", "image")})[:, 0])
    expected = F.cross_entropy(logits, torch.tensor([1] * 4 + [0] * 8))
    assert torch.allclose(value, expected)


def test_negatives_are_hard_and_never_of_the_same_image():
    torch.manual_seed(0)
    similar = torch.tensor([[9.0, 2.0, 0.0, 5.0]]).expand(2000, 4)[:, [0, 1, 2, 3]]
    same = torch.tensor([[True, False, False, False]]).expand(2000, 4)
    rows, found = objectives.hard_negatives(similar, same)
    assert torch.equal(rows, torch.arange(2000))
    shares = torch.bincount(found, minlength=4) / 2000
    expected = torch.tensor([0.0, math.exp(2), 1.0, math.exp(5)])
    assert torch.allclose(shares, expected / expected.sum(), atol=0.02)
    everyone = torch.ones(3, 3).bool()
    assert objectives.hard_negatives(torch.randn(3, 3), everyone)[0].numel() == 0


def test_a_single_pair_has_no_negative_and_still_counts():
    found = losses(tiny().eval(), batch(1))
    assert all(value.isfinite() for value in found.values())


# Momentum -----------------------------------------------------------------------------------------


def test_copies_follow_the_factors():
    network, data = low_rank(tiny()), batch()
    name = "text_encoder.bert.encoder.layer.2.crossattention.self.key.down.weight"
    slow = momentum.attach(network, queue=16)
    own, theirs = network.get_parameter(name), slow.network.get_parameter(name)
    assert torch.equal(own, theirs)
    start = theirs.clone()
    with torch.no_grad():
        own += 1
    network.train()
    losses(network, data)
    assert torch.allclose(theirs, 0.995 * start + 0.005 * own)
    assert int(slow.seen) == 6
    moved = theirs.clone()
    losses(network, data)  # the next batch of the same update
    assert torch.equal(theirs, moved)
    assert int(slow.seen) == 12
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    sum(losses(network, data).values()).backward()
    optimizer.step()
    losses(network, data)
    assert not torch.equal(theirs, moved)
    slow.seen.fill_(6)
    network.eval()
    losses(network, data)
    assert int(slow.seen) == 6  # an evaluation leaves them


def test_copies_take_no_gradient_and_no_dropout():
    network, data = low_rank(tiny(dropout=0.5)).train(), batch()
    momentum.attach(network, queue=16)
    assert not any(p.requires_grad for n, p in network.named_parameters() if n.startswith("mom"))
    assert not any(part.training for part in network.momentum.network.modules())
    sum(losses(network, data).values()).backward()
    for name, p in network.named_parameters():
        assert (p.grad is None) == name.startswith("momentum."), name


def test_nothing_stays_behind():
    network = low_rank(tiny())
    before = list(network.state_dict())
    momentum.attach(network, queue=16)
    assert any(name.startswith("momentum.network.") for name in network.state_dict())
    with pytest.raises(RequestError, match="already"):
        momentum.attach(network)
    momentum.detach(network)
    momentum.detach(network)
    assert list(network.state_dict()) == before


def test_alpha_is_ramped_up():
    slow = momentum.attach(tiny(), queue=4, weight=0.4, ramp=10)
    assert slow.alpha == 0
    slow.seen += 5
    assert slow.alpha == pytest.approx(0.2)
    slow.seen += 50
    assert slow.alpha == pytest.approx(0.4)


def test_the_queue_is_a_ring():
    slow = momentum.Momentum(tiny(), queue=5)
    assert torch.allclose(slow.images.norm(dim=1), torch.ones(5))
    rows = torch.eye(16)
    slow.remember(rows[:3], rows[3:6], torch.tensor([7, 8, 9]))
    slow.remember(rows[6:9], rows[9:12], torch.tensor([10, 11, 12]))
    assert slow.images.argmax(1).tolist() == [8, 1, 2, 6, 7]
    assert slow.texts.argmax(1).tolist() == [11, 4, 5, 9, 10]
    assert slow.ids.tolist() == [12, 8, 9, 10, 11]
    slow.remember(rows[:8], rows[:8])  # larger than the queue: the last ones stay
    assert sorted(slow.images.argmax(1).tolist()) == [3, 4, 5, 6, 7]
    assert slow.ids.tolist() == [momentum.NO_ID] * 5


def test_a_remembered_text_of_the_same_image_is_no_negative():
    network, data = tiny().eval(), batch(2) | {"ids": torch.tensor([3, 4])}
    slow = momentum.attach(network, queue=3, weight=0)
    slow.ids[1] = 4
    inputs, total = data["inputs"], 0.0
    image = network.image_features(network.embed_images(inputs["pixel_values"]))
    text = network.embed_texts(inputs["input_ids"], inputs["attention_mask"])
    text = network.text_features(text)
    for ours, keys in ((image, [text, slow.texts]), (text, [image, slow.images])):
        log = (ours @ torch.cat(keys).T / 0.07).log_softmax(1)
        total = total - (log[0, 0] + (log[1, 1] + log[1, 3]) / 2) / 2 / 2
    assert torch.allclose(losses(network, data)["contrast"], total, atol=1e-5)


def test_a_stopped_run_goes_on_alike():
    """The copies and the queues are in the state that checkpoints hold."""
    data = [batch(seed=s) for s in range(4)]

    def train(network, batches):
        optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.05)
        for one in batches:
            torch.manual_seed(int(one["inputs"]["input_ids"].sum()))
            optimizer.zero_grad()
            sum(losses(network.train(), one).values()).backward()
            optimizer.step()
        return network

    whole = tiny()
    momentum.attach(whole, queue=16, ramp=12)
    train(whole, data)
    first = tiny()
    momentum.attach(first, queue=16, ramp=12)
    state = copy.deepcopy(train(first, data[:2]).state_dict())
    second = tiny(seed=5)
    momentum.attach(second, queue=16, ramp=12)
    second.load_state_dict(state)
    train(second, data[2:])
    for name, tensor in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


def test_the_temperature_stays_in_its_bounds():
    network, data = tiny().train(), batch()
    with torch.no_grad():
        network.temp.fill_(3.0)
    losses(network, data)
    assert network.temp.item() == 0.5


# Learning -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("prepare", [lambda n: n, low_rank], ids=["dense", "low-rank"])
def test_the_three_objectives_are_learned_by_heart(prepare):
    torch.manual_seed(0)
    network, data = prepare(tiny(dropout=0.0)), batch(8)
    momentum.attach(network, queue=16, ramp=160, decay=0.9)
    network.train()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 3e-3)
    course = []
    for _ in range(200):
        optimizer.zero_grad()
        found = losses(network, data)
        sum(found.values()).backward()
        optimizer.step()
        course.append({name: value.item() for name, value in found.items()})
    network.eval()
    inputs = data["inputs"]
    image = network.embed_images(inputs["pixel_values"])
    text = network.embed_texts(inputs["input_ids"], inputs["attention_mask"])
    similar = network.image_features(image) @ network.text_features(text).T
    assert (similar.argmax(1) == torch.arange(8)).float().mean() >= 0.75  # chance: 0.125
    words = network.text_encoder.words(objectives.passes(network, data).masked)
    there = data["masked_labels"] != -100
    assert (words.argmax(-1)[there] == data["masked_labels"][there]).all()
    assert course[-1]["matching"] < 0.25  # 0.64 is what guessing gives
    assert course[-1]["contrast"] < course[0]["contrast"] - 0.5


@pytest.mark.parametrize("variant", ["entailment", "vqa"])
def test_downstream_objectives_are_learned_by_heart(variant):
    torch.manual_seed(0)
    network, inputs = tiny(variant, dropout=0.0), pairs(6)
    ids = torch.tensor([[1, 9 + i, 2] for i in range(6)])
    data = {
        "inputs": inputs, "labels": torch.arange(6) % 3, "answer_ids": ids,
        "answer_mask": torch.ones_like(ids), "answer_of": torch.arange(6),
        "answer_weights": torch.ones(6),
    }  # fmt: skip
    loss = objectives.entailment if variant == "entailment" else objectives.answers
    momentum.attach(network, ramp=300)
    network.train()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        loss(network, data).backward()
        optimizer.step()
    network.eval()
    if variant == "entailment":
        assert (network(**inputs)["logits"].argmax(1) == data["labels"]).all()
    else:
        logits = network(**inputs, decoder_input_ids=ids[:, :2])["logits"]
        assert (logits.argmax(-1) == ids[:, 1:]).all()


# Two processes ------------------------------------------------------------------------------------


def remembered(rank):
    """(features, ids) in the queue of a process that has seen its half of four pairs."""
    network, data = tiny().train(), batch(4)
    mine = slice(2 * rank, 2 * rank + 2)
    data = {"inputs": {k: v[mine] for k, v in data["inputs"].items()}, "ids": torch.arange(4)[mine]}
    slow = momentum.attach(network, queue=6)
    losses(network, data)
    return slow.images.tolist(), slow.ids.tolist()


@pytest.mark.slow
def test_all_processes_remember_all_pairs(tmp_path):
    launch, environment = by_torchrun(__file__, tmp_path, 2, OMP_NUM_THREADS="1")
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (images, ids), (others, other_ids) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)
    )
    assert images == others
    assert ids == other_ids == [0, 1, 2, 3, momentum.NO_ID, momentum.NO_ID]
    network = tiny().eval()
    expected = network.image_features(network.embed_images(batch(4)["inputs"]["pixel_values"]))
    assert torch.allclose(torch.tensor(images)[:4], expected, atol=1e-5)


if __name__ == "__main__":
    state = processes.join("cpu")
    rank = state.process_index
    (Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(remembered(rank)))
    state.wait_for_everyone()
