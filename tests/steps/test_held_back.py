"""What `decompose` says of the model that it made, on samples that nothing was fitted to."""

from __future__ import annotations

import pytest
import torch
from generated_text import FILLERS, KEYS, save_model
from json_output import document

import pelacli
from pelacli.factorize import refit
from pelacli.manifest import document as manifests
from pelacli.measure.held_back import Distance
from pelacli.steps import fit_quality
from pelacli.steps.solved import Fit


@pytest.fixture
def texts(here):
    """A language model's directory, and a file of texts."""
    save_model("llama", "CausalLM", here / "lm")
    generator = torch.Generator().manual_seed(0)
    words = [*FILLERS, *KEYS]
    lines = [
        " ".join(words[i] for i in torch.randint(len(words), (14,), generator=generator))
        for _ in range(400)
    ]
    (here / "a.txt").write_text("\n".join(lines))
    return ("decompose", "lm", "--ratio", "0.8", "--calibrate", "a.txt", "--samples", 64)


def test_a_language_models_perplexity_stands_in_json_and_manifest(pela, texts, here):
    done = document(pela(*texts, "-o", "b", "--json"))
    held_back = done["held_back"]
    assert held_back["samples"] == 8
    assert 0 < held_back["relative_error"] < 1
    assert 0 < held_back["kl"] < 1
    assert held_back["perplexity"] > 1 < held_back["dense_perplexity"]
    assert manifests.read(here / "b").history[-1].metrics["held_back"]["samples"] == 8
    assert done["sensitivity"] == "sampled tokens"
    assert manifests.read(here / "b").history[-1].metrics["sensitivity"] == "sampled tokens"


def test_the_line_for_people_names_the_error_and_the_perplexity(pela, texts):
    code, out, _ = pela(*texts, "-o", "b")
    assert code == 0
    assert "on 8 held-back samples: relative error 0." in out
    assert "perplexity" in out


def test_a_correction_that_makes_the_model_worse_is_left_out(pela, texts, monkeypatch, here):
    real = refit.correct

    def ruined(*args, **kwargs):
        return {n: (d, 9 * u, b) for n, (d, u, b) in real(*args, **kwargs).items()}

    monkeypatch.setattr(refit, "correct", ruined)
    code, out, err = pela(*texts, "-o", "b", "--json")
    assert code == 0
    done = document((code, out, ""))
    assert done["corrected"] is False
    assert done["held_back"]["rejected"]["kl"] > done["held_back"]["kl"]
    assert "the correction made the model worse on the held-back samples" in err
    pela(*texts, "--no-correct", "-o", "c")
    x = {"input_ids": torch.randint(5, 50, (2, 12))}
    with torch.no_grad():
        b, c = (pelacli.load(here / name)(**x).logits for name in "bc")
    assert torch.equal(b, c)


def test_too_few_tokens_for_a_layers_inputs_are_said(pela, texts):
    _, _, err = pela(*texts[:-1], 2, "-o", "b")
    assert "fewer than 4 tokens for each input" in err
    assert "calibrate on more" in err


def test_with_few_tokens_a_firmer_ridge_is_tried_and_the_better_kept(pela, texts, monkeypatch):
    tried = []
    real = refit.correct

    def watched(*args, ridge, **kwargs):
        tried.append(ridge)
        factors = real(*args, ridge=ridge, **kwargs)
        return {n: (d, u if ridge > 0.5 else 1.2 * u, b) for n, (d, u, b) in factors.items()}

    monkeypatch.setattr(refit, "correct", watched)
    done = document(pela(*texts, "-o", "b", "--json"))
    assert tried == [0.1, 1.0]
    assert done["ridge"] == 1.0
    tried.clear()
    document(pela(*texts[:-1], 350, "-o", "c", "--json"))  # 3,500 tokens for 64 inputs
    assert tried == [0.1]


@pytest.mark.parametrize(("without", "after", "said"), [(1e-7, 2e-7, False), (0.1, 0.2, True)])
def test_a_correction_that_is_left_out_is_told_where_something_is_lost(
    capsys, without, after, said
):
    one_shot, rejected = (Distance(8, error) for error in (without, after))
    fit_quality.warn_of_distance(Fit({}, False, one_shot, rejected=rejected))
    assert ("the correction made the model worse" in capsys.readouterr().err) == said
