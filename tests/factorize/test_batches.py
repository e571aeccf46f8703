"""Small calibration batches are joined, and what can't be joined stays as it is."""

from __future__ import annotations

import pytest
import torch

from pelacli.factorize.batches import join


def sizes(batches):
    return [len(b if isinstance(b, torch.Tensor) else next(iter(b.values()))) for b in batches]


def test_small_batches_of_one_shape_are_joined_in_their_order():
    samples = torch.randn(75, 2, 3)
    joined = join(iter(samples.split(10)))
    assert sizes(joined) == [30, 30, 15]
    assert torch.equal(torch.cat(joined), samples)


def test_full_batches_and_the_rest_stay_the_very_batches():
    """The command line's own batches are such."""
    batches = list(torch.randn(75, 2, 3).split(32))
    joined = join(batches)
    assert len(joined) == 3
    assert all(a is b for a, b in zip(joined, batches, strict=True))
    larger = list(torch.randn(100, 2).split(50))
    assert all(a is b for a, b in zip(join(larger), larger, strict=True))


def test_only_equal_shapes_and_types_are_joined():
    a, b = torch.randn(4, 2), torch.randn(4, 3)
    half = torch.randn(4, 2, dtype=torch.float16)
    joined = join([a, b, half, a, b, half])
    assert sizes(joined) == [8, 8, 8]
    assert [(*batch.shape[1:], batch.dtype) for batch in joined] == [
        (2, torch.float32), (3, torch.float32), (2, torch.float16),
    ]  # fmt: skip


def test_dicts_are_joined_name_by_name():
    texts = [
        {"input_ids": torch.full((2, n), i), "attention_mask": torch.ones(2, n)}
        for i, n in enumerate((5, 7, 5, 5))
    ]
    joined = join(texts)
    assert [tuple(batch["input_ids"].shape) for batch in joined] == [(6, 5), (2, 7)]
    assert joined[0]["input_ids"][:, 0].tolist() == [0, 0, 2, 2, 3, 3]
    assert joined[0]["attention_mask"].shape == (6, 5)
    assert joined[1] is texts[1]


@pytest.mark.parametrize(
    "batch",
    [
        {"pixels": torch.randn(6, 4), "grid": torch.ones(1, 3)},  # patches of one image
        {"x": torch.randn(1, 4), "scale": torch.tensor(2.0)},
        {"x": torch.randn(1, 4), "how": "fast"},
        (torch.randn(1, 4), torch.zeros(1)),
        {},
    ],
)
def test_what_has_no_one_batch_dimension_stays_alone(batch):
    joined = join([batch, batch])
    assert len(joined) == 2
    assert all(one is batch for one in joined)
