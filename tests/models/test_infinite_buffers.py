"""Bounds that are infinite are no damage."""

from __future__ import annotations

import pytest
import torch

import pelacli
from pelacli.errors import RequestError
from pelacli.models import opening

TINY = {"depth": 1, "embed_dim": 32, "num_heads": 2}


@pytest.fixture
def clipped():
    """Its layers clip what they get and give to bounds, which are infinite at first."""
    opened = opening.open("gemma4_vit_167m", weights="random", model_args=TINY, num_classes=3)
    bounds = [b for name, b in opened.module.named_buffers() if name.endswith("input_max")]
    assert bounds
    assert all(torch.isposinf(bound) for bound in bounds)
    return opened


def test_a_model_with_infinite_bounds_is_cut_saved_and_loaded(clipped, tmp_path):
    pelacli.decompose(clipped.module, ratio=0.6, scope="layers")
    pelacli.save(clipped.module, tmp_path / "a")
    again = pelacli.load(tmp_path / "a")
    state = clipped.module.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


def test_a_bound_that_is_no_number_is_damage(clipped):
    name = next(n for n, _ in clipped.module.named_buffers() if n.endswith("input_max"))
    clipped.module.get_buffer(name).fill_(float("nan"))
    with pytest.raises(RequestError, match="input_max holds values that are not finite"):
        opening._refuse_non_finite(clipped)
