"""What compression must keep of a model, whatever its family. Shared by tests."""

from __future__ import annotations

import copy
from fractions import Fraction

import torch
from torch import Tensor

from pelacli.artefact import description, loading, saving
from pelacli.factorize import engine
from pelacli.lowrank import find, replace
from pelacli.models import examples, prediction
from pelacli.ranks import planner
from pelacli.ranks.budget import Budget
from pelacli.ranks.size import ModelSize

BERT = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "vocab_size": 200,
}  # fmt: skip


def with_larger_weights(model):
    """The model, changed in place. Fresh models are almost constant functions: larger weights make
    their layers count."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(0.1 * noise if parameter.ndim < 2 else 0.03 * noise)
    return model


def sample(model):
    batch = examples.example(model)
    generator = torch.Generator().manual_seed(2)

    def fill(name: str, value: Tensor) -> Tensor:
        if value.is_floating_point():
            return torch.randn(value.shape, generator=generator)
        if name.endswith("input_ids"):
            ids = torch.randint(1, 190, value.shape, generator=generator)
            ids[:, -1] = value[:, -1]  # what models that pool at the last token look for
            return ids
        return value

    if isinstance(batch, Tensor):
        return fill("", batch)
    return {name: fill(name, value) for name, value in batch.items()}


def output(module, batch):
    with torch.no_grad():
        return prediction.predict(module, batch)


def check_compression(model, folder, output=output):
    """Full rank equals dense, the counts are right, and the artefact reloads bitwise.

    Args:
        output: (module, batch) → the tensor that is compared.
    """
    batch = sample(model)
    dense = output(model.module, batch)
    layers = find.find_layers(model.module, head=model.head)
    free = [layer for layer in layers if layer.reason is None]
    assert len(free) >= 4
    spent = description.cost(model, layers)
    assert spent is not None
    cuts = engine.solve(free, {}, keep=engine.Keep.ALL)
    spectra = engine.spectra(free, cuts, {})
    fixed = find.fixed_params(model.module, free)

    def cut(**how):
        plan = planner.plan(spectra, Budget(**how), ModelSize(fixed_params=fixed))
        small = copy.copy(model)
        small.module = copy.deepcopy(model.module)
        replace.replace(small.module, engine.factors(free, cuts, {}, plan))
        return small, description.describe(model, layers, spent, plan)

    full = {layer.name: "full" for layer in free}
    whole, _ = cut(policy="threshold", threshold=1.0, ratio=None, pins=full)
    assert len(find.low_rank_layers(whole.module)) == len(free)
    assert torch.allclose(output(whole.module, batch), dense, atol=1e-4)

    small, described = cut(policy="energy", ratio=Fraction("0.6"), scope="layers")
    assert sum(p.numel() for p in small.module.parameters()) == described.params.after
    again = description.cost(small, [])
    assert again is not None
    assert again.total == described.flops.after < described.flops.before
    expected = output(small.module, batch)
    assert not torch.allclose(expected, dense, atol=1e-4)  # or all of this would show nothing
    saving.save(small, described, folder / "artefact")
    back = loading.load(folder / "artefact")
    assert torch.equal(output(back.module, batch), expected)
    assert back.manifest == described
    assert back.opened.inputs == model.inputs
