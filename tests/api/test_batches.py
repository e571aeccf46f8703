"""What Python callers give as batches: all forms of the same samples make the same model, and all
else is refused in a line that names the argument."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pelacli
from pelacli.errors import RequestError

IMAGES = torch.randn(80, 4, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.zeros(80, dtype=torch.long)
PARTS = list(IMAGES.split(32))
Pair = namedtuple("Pair", "image label")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])

    def forward(self, x, attention_mask=None):
        for layer in self.layers:
            x = x + layer(x).tanh()
        return x.mean(1)


class Two(Net):
    def forward(self, a, b):
        return super().forward(a + b)


class Loss(Net):
    def forward(self, x):
        return super().forward(x).sum()


class Named(Dataset):
    """Samples that a DataLoader collates to dicts."""

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, i):
        return {"x": IMAGES[i]}


def net(kind=Net):
    torch.manual_seed(0)
    return kind()


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def made_of(batches):
    model = net()
    pelacli.decompose(model, ratio=0.8, scope="layers", policy="uniform", batches=batches)
    return state(model)


FORMS = {
    "a tensor": lambda: IMAGES,
    "a tensor that wants gradients": lambda: IMAGES.clone().requires_grad_(),
    "a dict": lambda: {"x": IMAGES},
    "a BatchEncoding": lambda: transformers.BatchEncoding({"x": IMAGES}),
    "a dict with a mask": lambda: {"x": IMAGES, "attention_mask": torch.ones(80, 4)},
    "a list of dicts": lambda: [{"x": x} for x in PARTS],
    "pairs": lambda: [(x, LABELS[:32]) for x in PARTS],
    "pairs as lists": lambda: [[x, LABELS[:32]] for x in PARTS],
    "named pairs": lambda: [Pair(x, 1) for x in PARTS],
    "pairs of a dict": lambda: [({"x": x}, LABELS[:32]) for x in PARTS],
    "a loader of pairs": lambda: DataLoader(TensorDataset(IMAGES, LABELS), batch_size=32),
    "a loader of inputs": lambda: DataLoader(TensorDataset(IMAGES), batch_size=32),
    "a loader of a tensor": lambda: DataLoader(IMAGES, batch_size=32),
    "a loader of dicts": lambda: DataLoader(Named(), batch_size=32),
    "a generator": lambda: (x for x in PARTS),
    "an array": lambda: IMAGES.numpy(),
    "a list of arrays": lambda: [x.numpy() for x in PARTS],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_the_same_samples_gives_the_same_model(form):
    assert same(made_of(form()), made_of(PARTS))
    torch.manual_seed(0)
    assert not same(made_of(form()), made_of(None))


def test_flops_are_counted_on_a_batch_of_any_form():
    for batches in (IMAGES, {"attention_mask": None, "x": IMAGES}):
        plan = pelacli.plan(net(), ratio=0.9, unit="flops", batches=batches)
        assert plan.total == 2 * 2 * 8 * 8 * 4


REFUSED = {
    "a dataset": (
        lambda: TensorDataset(IMAGES, LABELS),
        r"is a Dataset of single samples; give Da",
    ),
    "one pair": (lambda: (IMAGES, LABELS), r"is one \(input, label\) pair"),
    "an empty list": (list, "there is none in it"),
    "a spent generator": (lambda: iter(()), r"was a generator read before\?"),
    "no samples": (lambda: IMAGES[:0], r"has shape \[0, 4, 8\]: no samples"),
    "an empty dict": (dict, r"is a dict without a tensor"),
    "lists in a dict": (lambda: {"x": [[1.0] * 8]}, r"return_tensors='pt'"),
    "a dict of loaders": (lambda: {"train": DataLoader(IMAGES)}, r"is a dict without a tensor"),
    "a key that is no text": (lambda: {0: IMAGES}, r"has the key 0"),
    "a text": (lambda: "images", r"is a str; give tensors \[B, …\], dicts"),
    "a number": (lambda: 3, r"is an int; give tensors"),
    "texts": (lambda: ["a cat"], r"batch 0 is a str"),
    "none": (lambda: [IMAGES, None], r"batch 1 is a NoneType"),
    "samples": (lambda: list(torch.randn(5, 8)), r"batch 0 has shape \[8\], .* x\[None\]"),
    "a single number": (lambda: torch.tensor(1.0), r"has shape \[\]"),
    "three things": (lambda: [(IMAGES, LABELS, LABELS)], r"batch 0 is a tuple of 3"),
    "a mask": (
        lambda: [(torch.arange(8).reshape(2, 4), torch.ones(2, 4).long())],
        r"batch 0: its second tensor looks like an attention mask .* give a dict",
    ),
    "another size": (lambda: IMAGES[..., :7], r"Net fails on float32 \[32, 4, 7\]: mat1 and mat2"),
    "another precision": (
        lambda: IMAGES.double(),
        r"the model is float32: give batches of float32",
    ),
    "an array of doubles": (lambda: np.zeros((2, 4, 8)), r"give batches of float32 too"),
    "bytes": (lambda: IMAGES.byte(), r"give batches of float32 too"),
    "an argument too many": (
        lambda: {"x": IMAGES, "label": LABELS},
        r"a dict of x float32 \[32, 4, 8\], label int64 \[32\]: .*'label'; leave it out",
    ),
    "on meta": (lambda: IMAGES.to("meta"), r'is a tensor on "meta"'),
    "sparse": (lambda: IMAGES.to_sparse(), r"is a tensor of layout torch.sparse_coo"),
    "an array of texts": (lambda: np.array(["a"]), r"is a ndarray"),
}


@pytest.mark.parametrize(("form", "says"), REFUSED.values(), ids=REFUSED)
def test_what_no_model_takes_is_refused_and_the_model_stays_as_it_is(form, says):
    model = net().train()
    before = state(model)
    for call in (pelacli.decompose, pelacli.plan):
        with pytest.raises(RequestError, match=rf"^batches:? .*{says}") as caught:
            call(model, ratio=0.8, scope="layers", batches=form())
        assert len(str(caught.value)) < 300
    assert same(state(model), before)
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Two, r"missing 1 required positional argument: 'b'; give a dict"),
        (
            Loss,
            r"gives a single number for float32 \[29, 4, 8\], a loss perhaps",
        ),  # 3 are held back
    ],
)
def test_a_model_that_wants_or_gives_something_else_is_named(kind, says):
    with pytest.raises(RequestError, match=rf"^batches: {kind.__name__} .*{says}") as caught:
        pelacli.decompose(net(kind), ratio=0.8, scope="layers", batches=PARTS[:1])
    assert kind is Loss or isinstance(caught.value.__cause__, TypeError)


def test_an_error_while_batches_are_made_is_the_callers_own():
    with pytest.raises(ZeroDivisionError):
        pelacli.decompose(net(), ratio=0.8, batches=(1 / 0 for _ in range(2)))
