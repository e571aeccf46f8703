"""Agreement over processes: also where one of them has no samples."""

from __future__ import annotations

import torch
from torch import nn

from pelacli.measure.agreement import agreement
from pelacli.system import processes


def compared(batches, dense=None):
    """Figures of a layer beside another one, or beside ``dense``, on some inputs."""
    torch.manual_seed(0)
    model, other = nn.Linear(4, 3), nn.Linear(4, 3)
    batches = [{"inputs": batch} for batch in batches]
    return agreement(
        model, dense or other, batches, lambda m, x: m(x), classes=True, divergence=True
    )


def test_processes_come_to_the_figures_of_one_also_without_samples_of_their_own(monkeypatch):
    inputs = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    whole = compared([inputs])
    assert whole.keys() == {"cosine", "relative_error", "same_class", "kl"}
    shares = ([inputs[:5]], [inputs[5:8], inputs[8:]], [])
    told = []
    for share in shares:
        monkeypatch.setattr(processes, "all_gather", lambda value: told.append(value) or [value])
        compared(share)
    assert told[2] is None
    for rank, share in enumerate(shares):
        others = [value for at, value in enumerate(told) if at != rank]
        monkeypatch.setattr(processes, "all_gather", lambda value, o=others: [value, *o])
        found = compared(share)
        assert found.keys() == whole.keys()
        for name, figure in found.items():
            torch.testing.assert_close(figure, whole[name])
    monkeypatch.undo()
    assert compared([]) == {}


def test_outputs_of_different_kinds_are_no_agreement_in_any_process(monkeypatch):
    told = []
    monkeypatch.setattr(processes, "all_gather", lambda value: told.append(value) or [value])
    assert compared([torch.zeros(2, 4)], nn.Linear(4, 2)) == {}
    monkeypatch.setattr(processes, "all_gather", lambda value: [value, *told])
    assert compared([], nn.Linear(4, 2)) == {}


def test_the_divergence_of_models_that_hardly_differ_is_no_rounding():
    torch.manual_seed(0)
    dense, model = nn.Linear(4, 3), nn.Linear(4, 3)
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), dense.parameters(), strict=True):
            ours.copy_(theirs + 1e-4 * ours)
    inputs = torch.randn(9, 4)
    ours, theirs = (m(inputs).detach().double().softmax(1) for m in (model, dense))
    wanted = (theirs * (theirs / ours).log()).sum(1).mean()
    found = agreement(
        model, dense, [{"inputs": inputs}], lambda m, x: m(x), classes=True, divergence=True
    )
    torch.testing.assert_close(found["kl"], float(wanted), rtol=1e-6, atol=0)
