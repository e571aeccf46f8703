"""What a quality budget measures models by."""

from __future__ import annotations

import gc

import torch
from generated_text import FILLERS, VOCABULARY, save_model

from pelacli.measure.evaluation import open_data
from pelacli.measure.judge import Judge
from pelacli.models import opening
from pelacli.recipe.data import Data


def test_the_logits_of_a_language_model_are_not_held(tmp_path):
    """They would be larger than the model; what the dense one said is on disk."""
    texts = tmp_path / "a.txt"
    texts.write_text("\n".join(" ".join(FILLERS[i % 9 : 20]) for i in range(24)))
    opened = opening.open(str(save_model("llama", "CausalLM", tmp_path / "lm")))
    data = open_data(opened, Data(dataset=str(texts), batch_size=4), "unlabelled", {}, split=None)
    judge = Judge(opened, data, torch.device("cpu"))
    assert judge.score() == 100
    gc.collect()
    logits = [
        t
        for t in gc.get_objects()
        if isinstance(t, torch.Tensor) and t.ndim == 3 and t.shape[-1] == VOCABULARY
    ]
    assert not logits
    assert judge.score() == 100  # the same model again
