"""lm-eval evaluates an artefact as what it is.

    pip install -e '.[consumers]' && pytest tests/artefact/test_lm_eval.py

Its forty packages are not in the extras for tests, so the test is passed over without it.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from generated_text import save_model

import pelacli

pytest.importorskip("lm_eval", reason="pip install lm-eval")


@pytest.fixture
def artefact(tmp_path):
    model = pelacli.load(save_model("llama", "CausalLM", tmp_path / "dense"))
    pelacli.decompose(model, 0.6, scope="layers", form="pivots")
    pelacli.save(model, tmp_path / "small")
    return tmp_path / "small"


def test_its_log_likelihoods_are_those_of_the_artefact(artefact):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=str(artefact), dtype="float32", device="cpu")
    text = "red green blue and so on"
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    (value,) = theirs.loglikelihood_rolling([request], disable_tqdm=True)
    ids = [theirs.prefix_token_id, *theirs.tok_encode(text)]
    with torch.no_grad():
        logits = pelacli.load(artefact)(torch.tensor([ids[:-1]])).logits[0]
    ours = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None]).sum()
    assert value == pytest.approx(float(ours), rel=1e-5)


def test_without_pela_it_refuses(artefact):
    script = f"from lm_eval.models.huggingface import HFLM; HFLM(pretrained={str(artefact)!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert "pela" in done.stderr.splitlines()[-1]
