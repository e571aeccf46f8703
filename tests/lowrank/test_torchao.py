"""torchao's 8 and 4 bits on the two parts of low-rank layers, of both forms: run, saved, loaded.

``pip install -e '.[consumers]'`` first, or these tests are skipped."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from generated_text import save_model
from tied_checkpoints import logits
from torch import nn

import pelacli
from pelacli.artefact import loading
from pelacli.errors import RequestError
from pelacli.lowrank import find

torchao = pytest.importorskip("torchao.quantization", exc_type=ImportError)
from torchao.quantization.granularity import PerGroup  # noqa: E402

CONFIGS = {
    "int8": lambda: torchao.Int8WeightOnlyConfig(),
    "int8, inputs too": lambda: torchao.Int8DynamicActivationInt8WeightConfig(),
    "int4": lambda: torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(8)),
}


def low_rank(form: str, path: Path) -> nn.Module:
    model = loading.open(str(save_model("llama", "CausalLM", path)))[0].module
    pelacli.decompose(model, 0.7, scope="layers", form=form, multiple=8)
    return model


@pytest.mark.parametrize("form", ["factors", "pivots"])
@pytest.mark.parametrize(
    ("bits", "most"), [("int8", 0.02), ("int8, inputs too", 0.05), ("int4", 0.3)]
)
def test_both_parts_are_quantised_saved_and_loaded(form, bits, most, tmp_path):
    model = low_rank(form, tmp_path / "m")
    expected = logits(model)
    torchao.quantize_(model, CONFIGS[bits](), filter_fn=lambda m, n: n.endswith((".up", ".down")))
    parts = [m for n, m in model.named_modules() if n.endswith((".up", ".down"))]
    assert len(parts) == 2 * len(find.low_rank_layers(model)) > 0
    assert all(type(part.weight.data) is not torch.Tensor for part in parts)
    output = logits(model)
    assert 0 < (output - expected).norm() / expected.norm() < most
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    again = low_rank(form, tmp_path / "n")
    again.load_state_dict(torch.load(file, weights_only=True), assign=True)
    assert torch.equal(logits(again), output)


def test_a_quantised_model_is_no_artefact(tmp_path):
    model = low_rank("factors", tmp_path / "m")
    torchao.quantize_(model, CONFIGS["int8"]())
    with pytest.raises(RequestError, match=r"weight is quantised \(Int8Tensor\)"):
        pelacli.save(model, tmp_path / "a")
    with pytest.raises(RequestError, match=r"weight is quantised \(Int8Tensor\)"):
        pelacli.export(model, tmp_path / "a", to="dense")
    assert not (tmp_path / "a").exists()
