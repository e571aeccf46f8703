"""What `pela run` says of what its steps have measured."""

from __future__ import annotations

import pytest

from pelacli.manifest.document import StepRecord
from pelacli.steps import step_figures

HELD_BACK = {"samples": 32, "relative_error": 0.220987, "one_shot": {"relative_error": 0.26}}
OF_TEXTS = {"samples": 16, "kl": 0.189, "perplexity": 41.437, "dense_perplexity": 37.151}
HEALED = {
    "cosine": 0.89644,
    "relative_error": 0.235776,
    "steps": 18,
    "losses": {"loss": 0.2},
    "start": {"cosine": 0.894123, "relative_error": 0.241055},
    "decided_by": "relative_error",
    "best_step": 18,
    "helped": True,
}


@pytest.mark.parametrize(
    ("step", "metrics", "line"),
    [
        ("decompose", {"energy": 0.99, "held_back": HELD_BACK},
         "relative error 0.221 on 32 held-back samples"),
        ("decompose", {"held_back": OF_TEXTS},
         "perplexity 41.44 on 16 held-back samples (dense 37.15)"),
        ("decompose", {"energy": 0.99, "held_back": None}, ""),
        ("pretrain", HEALED, "relative error 0.2411 → 0.2358"),
        ("finetune", {"accuracy": 96.944, "loss": 0.1, "steps": 20}, "accuracy 96.94"),
        ("finetune", {"steps": 20, "losses": {}}, ""),
    ],
)  # fmt: skip
def test_the_line_for_people(step, metrics, line):
    assert step_figures.line(StepRecord(step=step, metrics=metrics)) == line


def test_json_has_the_figures_of_what_went_in_too():
    healed = step_figures.figures(StepRecord(step="pretrain", metrics=HEALED))
    assert healed == {
        "metrics": {"cosine": 0.89644, "relative_error": 0.235776},
        "start": HEALED["start"],
    }
    cut = step_figures.figures(StepRecord(step="decompose", metrics={"held_back": HELD_BACK}))
    assert cut == {"metrics": {"samples": 32, "relative_error": 0.220987}}
