"""Small calibration batches are joined, and what can't be joined stays as it is."""

from __future__ import annotations

import pytest
import torch

from pelacli.factorize.batches import hold_back, join, text_parts, with_held_back


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


def test_a_ninth_of_the_samples_is_held_back_from_the_end():
    samples = torch.randn(288, 3)
    divided = hold_back(list(samples.split(32)))
    assert sizes(divided.fitted) == [32] * 8
    assert torch.equal(torch.cat(divided.held_back), samples[256:])
    assert with_held_back(256) == 288


def test_a_batch_is_divided_where_the_ninth_begins():
    texts = {"input_ids": torch.arange(100).view(20, 5), "attention_mask": torch.ones(20, 5)}
    divided = hold_back([texts])
    assert (sizes(divided.fitted), sizes(divided.held_back)) == ([18], [2])
    assert torch.equal(divided.held_back[0]["input_ids"], texts["input_ids"][18:])


def test_fewer_than_eighteen_samples_are_all_fitted_to():
    """One sample says nothing of how outputs vary."""
    divided = hold_back([torch.randn(17, 3)])
    assert (sizes(divided.fitted), list(divided.held_back)) == ([17], [])
    assert sizes(hold_back([torch.randn(18, 3)]).held_back) == [2]
    assert hold_back([]).fitted == []


def test_texts_are_cut_to_so_many_tokens_and_images_stay():
    texts = {"input_ids": torch.arange(70).view(7, 10), "attention_mask": torch.ones(7, 10)}
    long = {"input_ids": torch.ones(2, 50, dtype=torch.long)}
    image = torch.randn(32, 3, 8, 8)
    parts = [part for batch in (texts, long, image) for part in text_parts(batch, batch, 30)]
    assert sizes(parts) == [3, 3, 1, 1, 1, 32]
    assert torch.equal(torch.cat([p["input_ids"] for p in parts[:3]]), texts["input_ids"])
