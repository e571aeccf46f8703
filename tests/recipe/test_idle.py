"""Keys of a recipe that nothing reads are found, each with the reason."""

from __future__ import annotations

import pytest
from recipe_text import DATA, read

from pelacli.recipe import gallery, layout, reading
from pelacli.recipe.idle import idle
from pelacli.recipe.schema import Recipe, resolved


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("[decompose]\nsamples = 9", ["decompose.samples"]),
        ("[decompose]\ncorrect = false", ["decompose.correct"]),
        ("[decompose]\ncalibrate = 'train'\nsamples = 9", []),
        ("[decompose]\nthreshold = 0.9\npolicy = 'energy'", ["decompose.threshold"]),
        ("[decompose]\nthreshold = 0.9\npolicy = 'threshold'", []),
        ("[decompose]\nthreshold = 0.9\npolicy = 'threshold'\nunit = 'flops'", ["decompose.unit"]),
        ("[decompose]\nplan = 'p.json'\nratio = 0.5\nmax_rank = 9",
         ["decompose.ratio", "decompose.max_rank"]),
        ("[pretrain.loss]\ntemperature = 2.0", ["pretrain.loss.temperature"]),
        ("[pretrain.loss]\ntemperature = 2.0\nkl = 1.0", []),
        ("[pretrain.loss]\neps = 0.1", ["pretrain.loss.eps"]),
        ("[pretrain.loss]\nperturbation_form = 'hinge'", ["pretrain.loss.perturbation_form"]),
        ("[pretrain.loss]\nperturbation = 1.0\neps = 0.1", []),
        ("[pretrain]\ntaps = ['x']\n[pretrain.loss]\nfeature = 0.0", ["pretrain.taps"]),
        ("[pretrain]\nlabels = true\n[pretrain.loss]\ntask = 0.0", ["pretrain.labels"]),
        ("[finetune]\nsched = 'none'\nmin_lr = 0.1", ["finetune.min_lr"]),
        ("[finetune]\nwarmup_lr = 0.1", ["finetune.warmup_lr"]),
        ("[finetune]\ndrop_path_rule = 'constant'", ["finetune.drop_path_rule"]),
        ("[finetune]\nfactor_lr = 2.0", []),
        ("[teacher]\nfactor_lr = 2.0", ["teacher.factor_lr"]),
        ("[data.augment]\nmixup_prob = 0.5", ["data.augment.mixup_prob"]),
        ("[data.augment]\nnone = true\nhflip = 0.1", ["data.augment.hflip"]),
    ],
)  # fmt: skip
def test_a_key_that_nothing_reads_is_found(here, text, keys):
    recipe = read(DATA + text)
    found = idle(recipe, "data", *layout.sections(recipe))
    assert [".".join(map(str, entry.key)) for entry in found] == keys


def test_what_is_written_out_in_full_is_not_idle(here):
    """A resolved recipe holds every key: those that have their defaults are not spoken of."""
    recipe = Recipe.model_validate(resolved(read(DATA + "[decompose]\n[pretrain]\n[finetune]")))
    assert not [entry for entry in idle(recipe, "data", *layout.sections(recipe)) if entry.differs]


@pytest.mark.parametrize("name", gallery.recipes())
def test_the_recipes_that_come_with_pela_have_no_idle_key(name):
    recipe = reading.load(gallery.find(name))
    assert not [e.key for e in idle(recipe, "data", *layout.sections(recipe)) if e.differs]
