"""The divergence of many words is computed part by part, and keeps nothing but its gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from pelacli.distillation import kl
from pelacli.recipe.training import Loss


def computed(loss, student, teacher):
    """(the loss, its gradient, bytes that are kept for the backward pass)."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    student = student.clone().requires_grad_()
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(student, teacher)
    (3 * value).backward()  # as other losses, weights and scalers stand around it
    return value.detach(), student.grad, sum(kept.values())


def plain(student, teacher, temperature=2.0):
    """The formula, in one piece."""
    log_q, log_p = (F.log_softmax(z.float() / temperature, -1) for z in (student, teacher))
    rows = log_q.flatten(0, -2), log_p.flatten(0, -2)
    return temperature**2 * F.kl_div(*rows, reduction="batchmean", log_target=True)


def in_parts(student, teacher):
    return kl.loss(student, teacher, Loss(temperature=2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("entries", [2**24, 7 * 50, 50, 1])  # a row is the least
def test_parts_give_the_formula_and_keep_only_the_gradient(monkeypatch, dtype, entries):
    torch.manual_seed(0)
    student, teacher = (torch.randn(3, 20, 50, dtype=dtype) for _ in range(2))
    value, gradient, more = computed(plain, student, teacher)
    monkeypatch.setattr(kl, "_ENTRIES", entries)
    same_value, same_gradient, kept = computed(in_parts, student, teacher)
    torch.testing.assert_close(same_value, value)
    torch.testing.assert_close(same_gradient, gradient)
    assert kept == student.nbytes < more


def test_nothing_is_kept_where_nothing_learns():
    student, teacher = torch.randn(2, 5), torch.randn(2, 5)
    assert kl.loss(student, teacher, Loss()).grad_fn is None
