"""One model of each family: full rank equals dense, artefacts reload bitwise, counts are right."""

from __future__ import annotations

import pytest
from families import BERT, check_compression, with_larger_weights

from pelacli.models import opening

# DistilBERT, GPT-2 and CLIP have words of their own for the same things.
DISTIL = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 200}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 200}
PICTURE = {k: BERT[k] for k in list(BERT)[:4]} | {"image_size": 64}
SWIN = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "image_size": 64, "window_size": 4}
TOWER = {k: BERT[k] for k in list(BERT)[:4]}
CLIP = {
    "text_config": TOWER | {"vocab_size": 200, "bos_token_id": 0, "eos_token_id": 199},
    "vision_config": TOWER | {"image_size": 64},
    "projection_dim": 32,
}

TIMM = {"embed_dim": 64, "depth": 2, "num_heads": 4}
FAMILIES = [
    ("vit_tiny_patch16_224", TIMM),
    ("deit_tiny_distilled_patch16_224", TIMM),
    ("deit3_small_patch16_224", TIMM),
    ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}),
    ("swinv2_tiny_window8_256", {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}),
    ("beit_base_patch16_224", TIMM),
    ("eva02_tiny_patch14_224", TIMM),
    ("eva_giant_patch14_224", TIMM),
    ("convnext_tiny", {"depths": [1, 1, 1, 1], "dims": [16, 24, 32, 40]}),
    ("bert", BERT),
    ("roberta", BERT),
    ("mpnet", BERT),
    ("distilbert", DISTIL),
    ("gpt2", GPT2),
    ("vit", PICTURE),
    ("swin", SWIN),
    ("clip", CLIP),
]


@pytest.mark.parametrize(("name", "args"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_full_rank_equals_dense_and_artefacts_reload(name, args, tmp_path):
    model = opening.open(name, weights="random", model_args=args)
    check_compression(with_larger_weights(model), tmp_path)
