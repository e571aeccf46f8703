"""Files of weights: their shapes, and modules filled from them, nothing missing or left over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pelacli.errors import RequestError
from pelacli.models.weight_files import StoredTensor, load_strictly, shapes, stored_tensors


class Tied(nn.Module):
    """A table that is also the last matrix, a persistent buffer and one that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.inner = nn.Linear(4, 4)
        self.output = nn.Linear(4, 5, bias=False)
        self.output.weight = self.table.weight
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("positions", torch.arange(3), persistent=False)


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "table.weight": torch.randn(5, 4, generator=generator),
        "inner.weight": torch.randn(4, 4, generator=generator),
        "inner.bias": torch.randn(4, generator=generator),
        "steps": torch.tensor(3.0),
    }


def empty() -> Tied:
    with torch.device("meta"):
        module = Tied()
    module.output.weight = module.table.weight
    return module


def load(tmp_path, tensors, module=None, hint=""):
    save_file(tensors, tmp_path / "model.safetensors")
    module = module or empty()
    load_strictly(module, stored_tensors([tmp_path / "model.safetensors"]), tmp_path, hint=hint)
    return module


def test_a_module_without_memory_gets_all_values(tmp_path):
    module = load(tmp_path, weights())
    state = module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights().items())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert module.positions.is_meta  # no file holds it, so the library that built it must


def test_a_shared_tensor_is_stored_once_under_either_name_and_stays_shared(tmp_path):
    for name in ("table.weight", "output.weight"):
        tensors = weights()
        tensors[name] = tensors.pop("table.weight")
        module = load(tmp_path, tensors)
        assert module.output.weight is module.table.weight
        assert torch.equal(module.output.weight, weights()["table.weight"])


def test_shards_are_read_one_tensor_at_a_time(tmp_path):
    parts = list(weights().items())
    files = [tmp_path / "model-1.safetensors", tmp_path / "model-2.safetensors"]
    save_file(dict(parts[:2]), files[0])
    save_file(dict(parts[2:]), files[1])
    tensors = stored_tensors(files)
    assert isinstance(tensors, Iterator)
    first = next(tensors)
    assert first.file == files[0]
    files[1].unlink()  # not opened yet
    assert next(tensors).file == files[0]
    with pytest.raises(RequestError, match=r"model-2\.safetensors: not a whole safetensors file"):
        next(tensors)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("inner.bias"), "{folder}: its weights lack inner.bias"),
        (lambda t: t.pop("steps"), "{folder}: its weights lack steps"),
        (
            lambda t: [t.pop(name) for name in list(t) if name.startswith("inner")],
            "{folder}: its weights lack inner.weight and 1 more",
        ),
        (lambda t: t.pop("table.weight"), "{folder}: its weights lack table.weight and 1 more"),
        (
            lambda t: t.update(positions=torch.arange(3)),
            "{file}: positions: the model has no such tensor",
        ),
        (
            lambda t: t.update({"inner.bias": torch.ones(3)}),
            "{file}: inner.bias: has shape (3,), the model wants (4,)",
        ),
        (
            lambda t: t["inner.bias"].fill_(torch.nan),
            "{file}: inner.bias: holds values that are not finite; the file is damaged, make it "
            "anew",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_file(tmp_path, change, says):
    tensors = weights()
    change(tensors)
    with pytest.raises(RequestError) as caught:
        load(tmp_path, tensors)
    expected = says.format(folder=tmp_path, file=tmp_path / "model.safetensors")
    assert str(caught.value) == expected


def test_the_hint_follows_the_name_of_a_missing_or_unknown_tensor(tmp_path):
    tensors = weights()
    del tensors["steps"]
    with pytest.raises(RequestError, match=r"lack steps; is it another\?$"):
        load(tmp_path, tensors, hint="; is it another?")
    with pytest.raises(RequestError, match=r"no such tensor; is it another\?$"):
        load(tmp_path, weights() | {"more": torch.ones(1)}, hint="; is it another?")


def test_values_do_not_lie_in_the_mapped_file(tmp_path):
    """A file may be replaced while its model is in memory."""
    module = load(tmp_path, weights())
    save_file({name: t + 1 for name, t in weights().items()}, tmp_path / "model.safetensors")
    assert torch.equal(module.inner.bias, weights()["inner.bias"])


def test_integers_are_loaded_without_gradients():
    class Codes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.codes = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)

    module, codes = Codes(), torch.tensor([1, 2], dtype=torch.int8)
    load_strictly(module, [StoredTensor("x", "codes", codes)], "x")
    assert torch.equal(module.codes, codes)
    assert not module.codes.requires_grad


def test_shapes_are_read_and_a_damaged_file_is_named(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(weights(), file)
    assert shapes(file) == {name: tuple(t.shape) for name, t in weights().items()}
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RequestError, match=r"model\.safetensors: not a whole safetensors file"):
        shapes(file)
