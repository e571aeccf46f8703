"""The healing stage: what it computes in a step, and that it heals."""

from __future__ import annotations

import functools
import os
import signal

import pytest
import torch
from watched_progress import watch

from pelacli.artefact import loading
from pelacli.data import dataset
from pelacli.distillation import logits
from pelacli.errors import PelaError, RequestError
from pelacli.lowrank import find
from pelacli.manifest import lookup
from pelacli.models import heads, opening
from pelacli.recipe import flags, layout, schema
from pelacli.recipe.step import step_of
from pelacli.steps import decompose, finetune, pretrain
from pelacli.tasks import registry
from pelacli.train import healing, regularisation

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def spec(tmp_path, **sections):
    top = {
        "model": "vit_tiny_patch16_224",
        "weights": "random",
        "model_args": TINY,
        "num_classes": 10,
        "output": str(tmp_path / "run"),
        "data": {"dataset": "digits", "batch_size": 32, "augment": {"none": True}},
        "decompose": {"ratio": "0.6", "calibrate": "train", "samples": 64},
    }
    return schema.Recipe.model_validate(top | sections)


@pytest.fixture
def decomposed(tmp_path):
    made = spec(
        tmp_path,
        pretrain={
            "steps": 12,
            "lr": 2e-3,
            "min_lr": 0.0,
            "loss": {"task": 1.0, "feature": 2.0, "logits": 0.5, "perturbation": 0.25},
        },
    )
    decompose.run(step_of(made, "decompose"))
    return made


def stage_of(made):
    student = loading.load(layout.folder(made, "decompose"))
    teacher = pretrain.open_teacher(step_of(made, "pretrain"), student)
    task = registry.get("image-classification")
    return (
        student,
        teacher,
        healing.Stage(made.pretrain, student.opened, teacher, task, labelled=True),
    )


def test_losses_of_a_step_are_the_formulas(decomposed):
    student, teacher, stage = stage_of(decomposed)
    torch.manual_seed(0)
    batch = {"inputs": torch.randn(4, 3, 16, 16), "labels": torch.tensor([1, 2, 3, 4])}
    named = stage.losses(student.module, batch)

    def blocks(vit, x):
        """The residual stream after every block, walked by hand."""
        x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(x))))
        found = []
        for block in vit.blocks:
            x = block(x)
            found.append(x)
        return found

    ours, theirs = (blocks(m, batch["inputs"]) for m in (student.module, teacher.module))
    feature = sum(((a - b) ** 2).mean() for a, b in zip(ours, theirs, strict=True)) / 2
    assert torch.allclose(named["feature"], 2.0 * feature, rtol=1e-5)
    z, t = student.module(batch["inputs"]), teacher.module(batch["inputs"])
    assert torch.allclose(named["logits"], 0.5 * ((z - t) ** 2).mean(), rtol=1e-5)
    task = torch.nn.functional.cross_entropy(z, batch["labels"])
    assert torch.allclose(named["task"], task, rtol=1e-5)
    gaps = [
        (up @ down - teacher.module.get_submodule(name).weight).abs().max()
        for name, m in find.low_rank_layers(student.module).items()
        for down, up in [m.factors()]
    ]
    wanted = 0.25 * sum((gap - 1e-3) ** 2 for gap in gaps) / len(gaps)
    assert len(gaps) > 1
    assert torch.allclose(named["perturbation"], wanted, rtol=1e-4)


def test_a_step_is_one_pass_of_each_model_and_the_teacher_gets_no_gradient(decomposed):
    student, teacher, stage = stage_of(decomposed)
    passes = {"student": 0, "teacher": 0}
    for name, module in (("student", student.module), ("teacher", teacher.module)):
        module.register_forward_hook(lambda *_, name=name: passes.update({name: passes[name] + 1}))
    student.module.train()
    batch = {"inputs": torch.randn(4, 3, 16, 16), "labels": torch.tensor([1, 2, 3, 4])}
    torch.stack(list(stage.losses(student.module, batch).values())).sum().backward()
    assert passes == {"student": 1, "teacher": 1}
    assert not teacher.module.training
    assert all(p.grad is None and not p.requires_grad for p in teacher.module.parameters())
    assert all(p.grad is not None for p in student.module.parameters())


def test_the_teacher_runs_first_and_the_perturbation_before_the_student(
    decomposed,
):
    """So the teacher's memory is free when the student runs, and the perturbation's gradients,
    which autograd computes last, arise when the student's activations are freed."""
    student, teacher, stage = stage_of(decomposed)
    order = []
    for name, module in (("student", student.module), ("teacher", teacher.module)):
        module.register_forward_hook(lambda *_, name=name: order.append(name))
    batch = {"inputs": torch.randn(4, 3, 16, 16), "labels": torch.tensor([1, 2, 3, 4])}
    named = stage.losses(student.module.train(), batch)
    assert order == ["teacher", "student"]
    made = {name: loss.grad_fn._sequence_nr() for name, loss in named.items()}
    assert min(made, key=made.get) == "perturbation"


def test_healing_brings_the_student_nearer_and_labels_are_not_needed(tmp_path):
    made = spec(
        tmp_path,
        decompose={"ratio": "0.3"},  # plain SVD at a third: far from the teacher
        pretrain={
            "epochs": 3,
            "lr": 1e-3,
            "labels": False,
            "loss": {"task": 0.0, "feature": 1.0},
        },
    )
    decompose.run(step_of(made, "decompose"))
    _, _, before = stage_of(made)
    done = pretrain.run(step_of(made, "pretrain"))
    after = loading.load(done.path)
    digits = dataset.open_dataset("digits", "validation", inputs=after.opened.inputs)
    x = torch.stack([digits[i]["inputs"] for i in range(64)])
    with torch.no_grad():
        target = before.teacher.module.forward_features(x)
        gap = logits.loss(before.student.module.forward_features(x), target)
        healed = logits.loss(after.module.forward_features(x), target)
    assert healed < 0.7 * gap
    lines = (done.path / "metrics.jsonl").read_text().splitlines()
    assert any('"feature"' in line for line in lines)
    assert not any('"task"' in line for line in lines)
    last = after.manifest.history[-1]
    assert (last.step, last.metrics["steps"]) == ("pretrain", done.steps)
    assert not done.path.with_name("pretrain.training").exists()


def test_a_dense_artefact_as_the_model_is_the_teacher_itself(tmp_path):
    """And not what that artefact once came from."""
    tuned = finetune.run(
        step_of(spec(tmp_path / "dense", decompose=None, finetune={"steps": 2}), "finetune")
    )
    made = spec(tmp_path, model=str(tuned.path), weights="pretrained", pretrain={"steps": 1})
    decompose.run(step_of(made, "decompose"))
    _, teacher, _ = stage_of(made)
    wanted = loading.load(tuned.path).module.state_dict()
    assert all(torch.equal(t, wanted[name]) for name, t in teacher.module.state_dict().items())


def test_the_perturbation_is_measured_against_the_weights_that_the_teacher_has_now(decomposed):
    """No copies are kept, which would stay behind when the teacher moves to another device."""
    student, teacher, stage = stage_of(decomposed)
    batch = {"inputs": torch.randn(4, 3, 16, 16), "labels": torch.tensor([1, 2, 3, 4])}
    before = stage.losses(student.module, batch)["perturbation"].item()
    for name in stage.layers:
        teacher.module.get_submodule(name).weight.data += 1.0
    assert stage.losses(student.module, batch)["perturbation"].item() > before + 0.1


def test_a_teacher_whose_output_is_not_finite_is_named(decomposed):
    student, teacher, stage = stage_of(decomposed)
    teacher.module.head.weight.data *= 1e38
    teacher.module.norm.weight.data *= 1e38
    batch = {"inputs": torch.randn(4, 3, 16, 16), "labels": torch.tensor([1, 2, 3, 4])}
    with pytest.raises(RequestError, match="vit_tiny_patch16_224: the teacher's output is not fin"):
        stage.losses(student.module, batch)


def rates(module):
    return [getattr(m, "drop_prob", 0.0) for n, m in module.named_modules() if "drop_path" in n]


def test_drop_path_can_be_set_and_removed():
    vit = opening.open("vit_tiny", weights="random", model_args=TINY).module
    regularisation.set_drop_path(vit, 0.2)
    assert rates(vit) == [0.0, 0.0, 0.2, 0.2]  # rising with depth from none at all
    regularisation.set_drop_path(vit, 0.3, "constant")
    assert rates(vit) == [0.3] * 4
    regularisation.set_drop_path(vit, 0.0)
    assert not any(type(m).__name__ == "DropPath" for m in vit.modules())


def test_drop_path_of_other_families():
    small = {"depths": [1, 2], "num_heads": [2, 2], "embed_dim": 16, "image_size": 56}
    swin = opening.open("swin", weights="random", model_args=small | {"window_size": 7}).module
    assert rates(swin) == pytest.approx([0.0, 0.05, 0.1])  # as transformers builds it
    regularisation.set_drop_path(swin, 0.4)
    assert rates(swin) == pytest.approx([0.0, 0.2, 0.4])
    regularisation.set_drop_path(swin, 0.0)
    assert rates(swin) == [0.0] * 3
    shape = {"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24]}
    convnext = opening.open("convnext_tiny", weights="random", model_args=shape).module
    regularisation.set_drop_path(convnext, 0.3)
    assert rates(convnext) == pytest.approx([0.0, 0.1, 0.2, 0.3])  # one a block
    with pytest.raises(RequestError, match="no stochastic depth"):
        regularisation.set_drop_path(torch.nn.Linear(2, 2), 0.1)
    regularisation.set_drop_path(torch.nn.Linear(2, 2), 0.0)


def test_blocks_after_the_last_joined_tap_get_no_gradient(decomposed):
    student, _, stage = stage_of(flags.with_flags(decomposed, "pretrain", taps_over=0.5))
    batch = {"inputs": torch.randn(4, 3, 16, 16), "labels": torch.tensor([1, 2, 3, 4])}
    before = stage.losses(student.module, batch)["feature"].item()
    first = stage.losses(student.module, batch, 0.0)["feature"]
    both = stage.losses(student.module, batch, 0.5)["feature"].item()
    assert both == before  # without a share of the run, all taps are distilled
    assert first.item() != both
    first.backward()
    trained = {n.split(".")[1] for n, p in student.module.named_parameters()
               if n.startswith("blocks.") and p.grad is not None}  # fmt: skip
    assert trained == {"0"}  # the blocks after the last tap have nothing to learn yet


@pytest.mark.slow
def test_compiled_blocks_heal_alike(decomposed, monkeypatch):
    """Taps join in and evaluations come between; compiled code must keep no hooks."""
    made = flags.with_flags(decomposed, "pretrain", taps_over=0.5, steps=4, epochs=1)
    plain = loading.load(pretrain.run(step_of(made, "pretrain")).path).module.state_dict()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    compiled = loading.load(
        pretrain.run(step_of(flags.with_flags(made, "pretrain", compile=True), "pretrain")).path
    ).module
    assert graphs
    for name, value in compiled.state_dict().items():
        torch.testing.assert_close(value, plain[name], rtol=1e-4, atol=1e-6)
    inside = flags.with_flags(made, "pretrain", compile=True, taps=[r"blocks\.0\.attn"])
    with pytest.raises(RequestError, match=r"taps: blocks\.0\.attn lies inside of what compile"):
        pretrain.run(step_of(inside, "pretrain"))


def test_a_healing_that_was_stopped_and_resumed_gives_bitwise_the_same_weights(
    tmp_path, monkeypatch
):
    """With mixup, drop-path, EMA, taps that join in, slow factors, decay of their product."""
    made = spec(
        tmp_path,
        data={"dataset": "digits", "batch_size": 32, "augment": {"mixup": 0.5, "cutmix": 0.5}},
        pretrain={
            "steps": 8, "lr": 2e-3, "ema": 0.9, "drop_path": 0.2, "taps_over": 0.75,
            "factor_lr": 0.5, "factor_decay": "product", "channels_last": True, "clip_grad": 1.0,
            "loss": {"task": 1.0, "feature": 2.0, "perturbation": 0.25},
        },
    )  # fmt: skip
    decompose.run(step_of(made, "decompose"))
    done = pretrain.run(step_of(made, "pretrain"))
    whole = (done.path / "model.safetensors").read_bytes()
    steps = []

    def note(n):
        steps.append(n)
        if sum(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    watch(monkeypatch, note, "pretrain")
    with pytest.raises(PelaError, match="stopped at step 3 of 8; continue with --resume"):
        pretrain.run(step_of(made, "pretrain"))
    pretrain.run(step_of(made, "pretrain"), resume=True)
    assert steps[-6:] == [3, 1, 1, 1, 1, 1]
    assert (done.path / "model.safetensors").read_bytes() == whole
    assert loading.load(done.path).module.patch_embed.proj.weight.is_contiguous()


def test_the_same_seed_heals_to_the_same_weights(decomposed):
    first = pretrain.run(step_of(decomposed, "pretrain"))
    weights = (first.path / "model.safetensors").read_bytes()
    again = pretrain.run(step_of(decomposed, "pretrain"))
    assert (again.path / "model.safetensors").read_bytes() == weights


def test_what_cannot_be_healed_is_refused_with_the_reason(tmp_path, decomposed):
    dense = spec(tmp_path, decompose=None, pretrain={"steps": 1})
    with pytest.raises(RequestError, match="not an artefact"):
        pretrain.run(step_of(dense, "pretrain"))
    missing = spec(tmp_path / "other", pretrain={"steps": 1})
    with pytest.raises(RequestError, match="run the earlier steps first"):
        pretrain.run(step_of(missing, "pretrain"))
    wrong = flags.with_flags(decomposed, "pretrain", taps=["nothing"])
    with pytest.raises(RequestError, match="matches no module"):
        pretrain.run(step_of(wrong, "pretrain"))


def test_a_directory_called_dense_may_be_the_model(tmp_path):
    assert lookup.require(str(tmp_path), "decompose") == str(tmp_path)
    made = tmp_path / "dense"
    with pytest.raises(RequestError, match="run the earlier steps first"):
        lookup.require(str(made), "decompose")
    made.mkdir()
    assert lookup.require(str(made), "decompose") == str(made)


def test_a_fresh_head_has_an_output_for_each_class_of_the_data(tmp_path):
    made = spec(tmp_path, decompose=None, num_classes=None, finetune={"steps": 2})
    done = finetune.run(step_of(made, "finetune"))
    trained = loading.load(done.path)
    assert heads.num_classes(trained.opened) == 10
    real = sum(p.numel() for p in trained.module.parameters())
    assert trained.manifest.params.after == real
    head = next(row for row in trained.manifest.layers if row.name == "head")
    assert head.shape == (10, 32)
