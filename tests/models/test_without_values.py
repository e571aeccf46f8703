"""Building a model without its values: as it is with them, and without the work of drawing them."""

from __future__ import annotations

import pytest
import timm
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pelacli.models.without_values import on_meta, parameters_without_values, without_values

CONFIG = transformers.BertConfig(
    vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
)
BUILD = {
    "timm": lambda: timm.create_model("test_vit"),
    "transformers": lambda: transformers.BertForMaskedLM(CONFIG),
}


class Operations(TorchDispatchMode):
    """Names of what torch computes."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func.overloadpacket.__name__))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("library", BUILD)
@pytest.mark.parametrize("empty", [without_values, parameters_without_values, on_meta])
def test_it_has_the_shapes_of_a_model_with_values_and_draws_none(library, empty):
    whole = BUILD[library]()
    with Operations() as computed, empty():
        module = BUILD[library]()
    assert all(p.is_meta for p in module.parameters())
    expected, found = ([(name, t.shape, t.dtype) for name, t in m.state_dict().items()]
                       for m in (whole, module))  # fmt: skip
    assert found == expected
    assert not computed.names & {"normal_", "uniform_", "erfinv_", "clamp_", "trunc_normal_"}
    buffers = dict(module.named_buffers())
    assert all(b.is_meta != (empty is parameters_without_values) for b in buffers.values())


def test_tensors_with_values_are_filled_and_shapes_that_do_not_fit_are_refused():
    layer = nn.Linear(3, 2)
    with on_meta():
        nn.init.constant_(layer.weight, 5.0)
        empty = torch.zeros(3)
        layer.bias.data.mul_(0).add_(2.0)
        with pytest.raises(RuntimeError, match="broadcast"):
            empty.add_(torch.zeros(2))
        assert empty.add_(1) is empty
    assert (layer.weight == 5).all()
    assert (layer.bias == 2).all()
