"""ALBEF as it is in the paper: its recipe on shapes alone, and a step of it at full size."""

from __future__ import annotations

import albef_world as world
import paper_recipes
import pytest

from pelacli.models import opening
from pelacli.train import optim


def built():
    return paper_recipes.built("albef")


def test_the_recipe_is_the_papers():
    spec, stage = built()
    section, task = spec.pretrain, stage.task
    assert stage.teacher.params == 209_937_725
    assert stage.student.params == 87_106_877
    assert len(stage.layers) == 144
    loss = section.loss
    assert (loss.task, loss.feature, loss.logits, loss.perturbation) == (1.0, 0.1, 0.0, 1.0)
    assert (loss.eps, loss.perturbation_form) == (1e-3, "two-sided")
    assert (section.opt, section.lr, section.min_lr, section.weight_decay) == (
        "adamw", 1e-4, 1e-5, 0.02,
    )  # fmt: skip
    assert (section.epochs, section.precision, section.clip_grad) == (20, "fp32", None)
    assert (spec.data.batch_size, spec.data.augment.scale) == (128, (0.2, 1.0))
    assert (task.queue, task.momentum, task.alpha, task.ramp, task.mask, task.max_tokens) == (
        65536, 0.995, 0.4, 1.0, 0.15, 25,
    )  # fmt: skip


def test_the_recipe_distils_33_features():
    """Embeddings and blocks: 13 of the image; 7 of the text alone; 13 of the masked text."""
    names = built()[1].taps
    assert len([n for n in names if n.startswith("visual_encoder.")]) == 13
    alone = ["text_encoder.bert.embeddings"]
    alone += [f"text_encoder.bert.encoder.layer.{i}" for i in range(6)]
    above = [f"text_encoder.bert.encoder.layer.{i}" for i in range(6, 12)]
    assert [n for n in names if n.startswith("text_encoder.")] == alone + above
    assert 13 + len(alone) + len(alone + above) == 33


def test_what_does_not_decay():
    """Biases, norms, positions, the class token and the temperature; both factors do."""
    spec, stage = built()
    student = stage.student.module
    made = optim.optimizer(student, spec.pretrain)
    decays = {id(p): g["weight_decay"] for g in made.param_groups for p in g["params"]}
    for name, p in student.named_parameters():
        tables = ("pos_embed", "cls_token", "position_embeddings", "temp")
        free = p.ndim < 2 or any(part in name for part in tables)
        assert decays[id(p)] == (0 if free else 0.02), name


@pytest.mark.slow
def test_albef_base_decomposed_trained_saved_and_loaded(here, pela):
    world.draw(here / "data", "train", 4, 0, size=256)
    folder = world.write(here / "albef", opening.open("albef", weights="random").module)
    settings = ["model=albef", "data.dataset=data", "data.workers=0", "data.batch_size=2",
                "task_args.queue=64", "output=runs"]  # fmt: skip
    losses, moved, row = paper_recipes.step("albef", settings, folder, pela)
    assert losses.keys() == {"loss", "contrast", "matching", "words", "feature", "perturbation"}
    # All that the three losses reach: everything but words that the batch does not name.
    assert moved > 0.95
    assert row["params"] == {"before": 209_937_725, "after": 87_106_877}
    assert round(row["flops"]["before"] / 1e9, 2) == 54.77
    assert round(row["flops"]["after"] / 1e9, 2) == 20.14
