"""Configurations of transformers made tiny by rules on their keys, with exceptions as data.

A rule is a pattern of whole key names and what becomes of an integer under it. Sub-configurations
are made tiny by the same rules. What an architecture needs beyond that stands in `EXCEPTIONS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

VOCABULARY, WIDTH, HEADS = 200, 64, 4
SPECIAL = 100  # from here on token numbers are special ones; samples are drawn from below


def _at_most(limit: int) -> Callable[[int], int]:
    return lambda value: min(value, limit)


# The first that matches counts.
RULES: list[tuple[str, Callable[[int], int]]] = [
    (r"num_feat_extract_layers|num_encoder_blocks", lambda value: value),
    (r"(.*_)?vocab(ulary)?_size|.*vocab_size.*|n_(words|tokens)", _at_most(VOCABULARY)),
    (r"qk_(nope|rope)_head_dim|v_head_dim", _at_most(16)),
    (r"(.*_)?head_(dim|size)|d_kv|.*head_dim|attention_head_size", _at_most(WIDTH // HEADS)),
    (r".*(key_value|kv)_heads?", _at_most(2)),
    (r".*(heads|n_head|num_head)s?", lambda value: min(value, HEADS) if value % 3 else 4),
    (r"(.*_)?(num|n)_(.*_)?(layers?|blocks|stages_layers)|.*_layers|n_layers?|depth", _at_most(2)),
    (
        r"(.*_)?(hidden_size|d_model|n_embd|embed_dim|emb_dim|dim|hidden_dim|embedding_size|"
        r"hidden_channels|projection_(dim|size)|d_embed|hidden_sizes?|encoder_stride_dim)",
        _at_most(WIDTH),
    ),
    (r"(.*_)?(intermediate_size|ffn_dim|d_ff|d_inner|ffn|mlp_dim|ffn_hidden_size|dim_feedforward)"
     r"(_.*)?", _at_most(2 * WIDTH)),
    (r"(n_inner|inner_dim|linear_width)", _at_most(2 * WIDTH)),
    (r"(.*_)?(q|kv|o|k|v)_lora_rank|.*lora_rank", _at_most(16)),
    (r"qk_(nope|rope)_head_dim|v_head_dim", _at_most(16)),
    (r"(.*_)?num_(.*_)?experts|n_(routed|shared)_experts", _at_most(4)),
    (r".*experts_per_tok(en)?|top_?k|moe_topk|moe_k", _at_most(2)),
    (r"n_group|topk_group|num_expert_groups?", _at_most(1)),
    (r"num_(object_)?quer(y|ies)(_tokens)?|num_query_tokens", _at_most(10)),
]  # fmt: skip

_NO_SETTINGS = {"transformers_version", "_name_or_path", "id2label", "label2id"}

_SWIN = {"window_size": 2}  # transformers' Swin can't take less than a window
_RESNET = {"hidden_sizes": [64, 64, 128, 128], "embedding_size": 64}
_DETR = {"backbone_config": _RESNET, "encoder_in_channels": [64, 128, 128]}
_DINO = {"out_features": ["stage1", "stage2"], "out_indices": [1, 2], "num_hidden_layers": 2}

# Architecture or model type → settings beyond the rules, nested as the configuration is.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "esm": {"vocab_size": 200, "pad_token_id": 1},
    "funnel": {"block_sizes": [1, 1], "block_repeats": [1, 1], "d_head": 16},
    "lilt": {"hidden_size": 96},
    "mobilebert": {"intra_bottleneck_size": 32, "true_hidden_size": 32},
    "xlnet": {"d_head": 16},
    "xmod": {"default_language": "en_XX"},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8, "input_size": 64},
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 32},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"],
    },
    "hunyuan_v1_dense": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 8},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2},
    "nemotron": {"num_key_value_heads": 2},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 64},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v3": {"first_k_dense_replace": 1},
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    "swin": _SWIN,
    "donut-swin": _SWIN,
    "d_fine": {
        "backbone_config": {
            "stem_channels": [3, 16, 16],
            "stage_in_channels": [16, 32, 64, 64],
            "stage_mid_channels": [16, 16, 16, 16],
            "stage_out_channels": [32, 64, 64, 64],
            "stage_numb_of_layers": [1, 1, 1, 1],
            "stage_num_blocks": [1, 1, 1, 1],
            "hidden_sizes": [32, 64, 64, 64],
        },
        "encoder_in_channels": [64, 64, 64],
    },
    "mask2former": {"feature_size": 64, "mask_feature_size": 64},
    "rt_detr": _DETR,
    "rt_detr_v2": _DETR,
    "gemma3": {"mm_tokens_per_image": 4},
    "siglip2": {"vision_config": {"num_patches": 16}},
    "qwen2_vl": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "zamba2": {
        "num_hidden_layers": 2, "layers_block_type": ["linear_attention", "hybrid"],
        "layer_types": ["linear_attention", "hybrid"], "hybrid_layer_ids": [1],
        "attention_hidden_size": 128, "attention_head_dim": 32, "kv_channels": 16,
        "mamba_headdim": 32, "adapter_rank": 16, "num_key_value_heads": 4, "num_query_groups": 4,
    },
    "clap": {"audio_config": {"patch_embeds_hidden_size": 16, "hidden_size": 128}},
    "cvt": {"depth": [1, 2, 3]},  # it looks up a rate of each stage among those of its layers
    "align": {
        "projection_dim": 16,
        "vision_config": {"width_coefficient": 0.1, "depth_coefficient": 0.2},
    },
    "CLIPSegForImageSegmentation": {"extract_layers": [0, 1], "reduce_dim": 32},
    "DPTForDepthEstimation": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "blip-2": {"image_token_index": 199},
    "instructblip": {"image_token_index": 199},
    "sam2": {
        "vision_config": {
            "backbone_config": {
                "hidden_size": 16, "embed_dim_per_stage": [16, 32, 64, 128],
                "num_attention_heads_per_stage": [1, 1, 2, 2], "image_size": [256, 256],
            },
            "backbone_channel_list": [128, 64, 32, 16], "fpn_hidden_size": 64,
            "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
        },
        "prompt_encoder_config": {"image_size": 256},
    },
    "sam": {
        "vision_config": {
            "output_channels": 64, "window_size": 2, "global_attn_indexes": [1],
            "num_pos_feats": 32,
        },
        "prompt_encoder_config": {"image_size": 64, "image_embedding_size": 4},
    },
    "UperNetForSemanticSegmentation": {"backbone_config": {"model_type": "swin"}},
    "BeitForSemanticSegmentation": {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]},
    "depth_anything": {"backbone_config": _DINO, "neck_hidden_sizes": [16, 32]},
}  # fmt: skip


def tiny(config: Any) -> dict[str, Any]:
    """The settings that make a model of this configuration tiny: what differs from ``config``."""
    found: dict[str, Any] = {}
    plain = config.to_dict()
    for key, value in plain.items():
        nested: Any = vars(config).get(key)
        if hasattr(nested, "to_diff_dict"):
            own = {k: v for k, v in nested.to_diff_dict().items() if k not in _NO_SETTINGS}
            found[key] = merged(own, tiny(nested)) | {"model_type": nested.model_type}
            continue
        small = _smaller(key, value)
        if small != value and not (key in ("hidden_size", "num_layers") and "depths" in plain):
            found[key] = small
    if "kv_lora_rank" in plain and "num_key_value_heads" in plain:
        found["num_key_value_heads"] = HEADS
    kinds = list(dict.fromkeys(plain.get("layer_types") or []))
    if kinds:  # one layer of each kind, and two at least
        found["layer_types"] = kinds if len(kinds) > 1 else 2 * kinds
        found["num_hidden_layers"] = len(found["layer_types"])
    return _images(config, found)


def _smaller(key: str, value: Any) -> Any:
    if key == "backbone" and value == "resnet50":
        return "resnet10t"
    if isinstance(value, bool) or not isinstance(value, int | list | tuple):
        return value
    if isinstance(value, int):
        if re.fullmatch(r".*token_(id|index)|.*_id|.*_idx", key):
            return value if value < SPECIAL else SPECIAL + value % SPECIAL
        for pattern, rule in RULES:
            if re.fullmatch(pattern, key):
                return rule(value)
        return value
    if not value or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        return value
    if re.fullmatch(r".*depths?", key):
        return [min(v, 1) for v in value]
    if re.fullmatch(r".*heads", key):
        return [HEADS // 2] * len(value)
    if re.fullmatch(r".*(hidden_sizes|embed_dims?|dims|channels|widths)", key):
        if len(set(value)) == 1:
            return [min(value[0], WIDTH)] * len(value)
        return [min(v, WIDTH // 2 * min(2**i, 4)) for i, v in enumerate(value)]
    return value


def _images(config: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Images of a few patches a side."""
    size = getattr(config, "image_size", None)
    if not size:
        return found
    patch = getattr(config, "patch_size", 16)
    patch = patch if isinstance(patch, int) else 16
    side = 64 if 64 % patch == 0 else 4 * patch
    found["image_size"] = side if isinstance(size, int) else [side] * len(size)
    return found


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``more`` laid over it, sub-configurations one by one."""
    result = dict(base)
    for key, value in more.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = merged(old, value)
        result[key] = value
    return result
