"""Each loss against its formula (PELA; pela's design notes), written out again in plain tensors."""

import subprocess
import sys

import pytest
import torch

from pelacli.distillation import logits, registry
from pelacli.errors import PelaError, RequestError
from pelacli.recipe.training import Loss
from pelacli.train import losses


def make_pairs(seed=0, shapes=((7, 5), (4, 9), (6, 6)), rank=3):
    g = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(o, rank, generator=g, requires_grad=True),
            torch.randn(rank, i, generator=g, requires_grad=True),
            torch.randn(o, i, generator=g, requires_grad=True),
        )
        for o, i in shapes
    ]


def plain_perturbation(pairs, eps, hinge):
    """The formula as the paper's code has it: the dense residual kept by autograd."""
    total = 0.0
    for up, down, weight in pairs:
        largest = torch.linalg.vector_norm(up @ down - weight, float("inf"))
        gap = largest - eps
        if hinge and gap < 0:
            gap = gap * 0
        total = total + gap**2
    return total / len(pairs)


def test_feature_is_the_mean_over_taps_of_the_mean_over_elements():
    g = torch.Generator().manual_seed(0)
    student = [torch.randn(2, 3, 4, generator=g), torch.randn(2, 8, generator=g)]
    teacher = [torch.randn(2, 3, 4, generator=g), torch.randn(2, 8, generator=g)]
    by_hand = [
        sum((a - b) ** 2 for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True))
        / s.numel()
        for s, t in zip(student, teacher, strict=True)
    ]
    assert losses.feature(student, teacher).item() == pytest.approx(sum(by_hand) / 2, rel=1e-6)


def test_feature_gradient_reaches_the_student_only():
    student = [torch.randn(2, 3, requires_grad=True)]
    teacher = [torch.randn(2, 3, requires_grad=True)]
    losses.feature(student, teacher).backward()
    torch.testing.assert_close(student[0].grad, 2 * (student[0] - teacher[0]).detach() / 6)
    assert teacher[0].grad is None


def test_features_that_do_not_match_are_refused_and_never_broadcast():
    with pytest.raises(PelaError, match=r"\(2, 3\).*\(2, 1\)"):
        losses.feature([torch.zeros(2, 3)], [torch.zeros(2, 1)])
    with pytest.raises(PelaError, match="1 student features for 2"):
        losses.feature([torch.zeros(2)], [torch.zeros(2)] * 2)
    with pytest.raises(PelaError, match="0 student"):
        losses.feature([], [])


def test_losses_are_float32_under_autocast():
    x = torch.randn(64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        student, teacher = x @ x, (x @ x) * 1.01
        assert student.dtype == torch.bfloat16
        assert logits.loss(student, teacher).dtype == torch.float32
    expected = ((student.double() - teacher.double()) ** 2).mean()
    assert logits.loss(student, teacher).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("form", ["two-sided", "hinge"])
@pytest.mark.parametrize("eps", [0.0, 1e-3, 2.5, 100.0])
def test_perturbation_and_its_gradient_equal_the_plain_formula(form, eps):
    ours, plain = make_pairs(), make_pairs()
    value = losses.perturbation(ours, eps, form)
    expected = plain_perturbation(plain, eps, form == "hinge")
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    value.backward()
    expected.backward()
    for (up, down, weight), (up2, down2, _) in zip(ours, plain, strict=True):
        torch.testing.assert_close(up.grad, up2.grad)
        torch.testing.assert_close(down.grad, down2.grad)
        assert weight.grad is None


def test_perturbation_moves_one_row_and_one_column():
    up, down, weight = pairs = make_pairs()[0]
    losses.perturbation([pairs], 1e-3).backward()
    residual = (up @ down - weight).detach().abs()
    row, column = divmod(int(residual.argmax()), residual.shape[1])
    assert up.grad.abs().sum(1).nonzero().flatten().tolist() == [row]
    assert down.grad.abs().sum(0).nonzero().flatten().tolist() == [column]


def test_two_sided_pushes_up_what_is_below_eps_and_hinge_leaves_it():
    for form, expected in (("two-sided", 0.25), ("hinge", 0.0)):
        pair = (torch.ones(2, 1), torch.ones(1, 2), torch.ones(2, 2))
        value = losses.perturbation([pair], 0.5, form)
        assert value.item() == expected


def test_perturbation_ignores_autocast():
    pairs = make_pairs(shapes=((96, 96),), rank=48)
    with torch.autocast("cpu", torch.bfloat16):
        value = losses.perturbation(pairs, 1e-3)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(plain_perturbation(pairs, 1e-3, False).item(), rel=1e-5)


def test_perturbation_of_rank_zero_is_that_of_the_weight():
    weight = torch.tensor([[1.0, -5.0], [4.0, 4.0]])  # largest entry 5; its row sum norm is 8
    value = losses.perturbation([(torch.zeros(2, 0), torch.zeros(0, 2), weight)], 0.0)
    assert value.item() == 25.0


def test_perturbation_keeps_no_dense_residual_for_the_backward_pass():
    kept = []

    def note(tensor):
        kept.append(tensor.numel())
        return tensor

    pairs = make_pairs(shapes=((64, 64),), rank=2)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        losses.perturbation(pairs, 1e-3)
    assert max(kept) < 64 * 64


def test_a_perturbation_of_no_pairs_or_of_an_unknown_form_is_refused():
    with pytest.raises(RequestError, match="no factorised layer"):
        losses.perturbation([], 1e-3)
    with pytest.raises(RequestError, match="perturbation_form 'l2'"):
        losses.perturbation(make_pairs(), 1e-3, "l2")


ABSOLUTE = """
DESCRIPTION = "mean absolute difference of the outputs"


def loss(student, teacher, settings):
    return (student - teacher).abs().mean()
"""
USE_ABSOLUTE = """
import sys

from pelacli import distillation

distillation.__path__.append(sys.argv[1])

from pelacli.recipe.training import Pretrain

assert "torch" not in sys.modules
settings = Pretrain(loss={"absolute": 2.0, "feature": 0.0})

import timm
import torch

from pelacli.models import wrapping
from pelacli.tasks import registry
from pelacli.train.healing import Stage

torch.manual_seed(0)
student, teacher = (wrapping.wrap(timm.create_model("test_vit").eval()) for _ in range(2))
stage = Stage(settings, student, teacher, registry.get("unlabelled"), labelled=False)
images = torch.randn(2, 3, 160, 160)
named = stage.losses(student.module, {"inputs": images})
expected = 2 * (student.module(images) - teacher.module(images)).abs().mean()
torch.testing.assert_close(named["absolute"], expected)
print(sorted(named))
"""


def test_a_file_is_all_that_a_new_loss_between_outputs_needs(tmp_path):
    """Recipes give it a weight, without torch, and healing adds it."""
    (tmp_path / "absolute.py").write_text(ABSOLUTE)
    done = subprocess.run(
        [sys.executable, "-c", USE_ABSOLUTE, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "'absolute'" in done.stdout


def test_a_recipe_gives_a_weight_to_every_loss_between_outputs():
    others = {"task", "output", "feature", "perturbation"}
    assert Loss().weights.keys() - others == set(registry.names())
    assert others < Loss().weights.keys()
