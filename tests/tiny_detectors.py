"""Tiny detectors of transformers with fresh weights, and batches for them. Shared by tests."""

from __future__ import annotations

import torch
import transformers

from pelacli.data.loader import loader
from pelacli.models import wrapping
from pelacli.recipe.data import Augment, Data
from pelacli.tasks import registry

YOLOS = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96,
    "image_size": [48, 48], "patch_size": 8, "num_detection_tokens": 2,
    "use_mid_position_embeddings": False,
}  # fmt: skip
RESNET = {
    "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}  # fmt: skip
DETR = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
}  # fmt: skip
STAGES = ["stage2", "stage3", "stage4"]
QUERIES = DETR | {"num_queries": 8, "auxiliary_loss": True}
RT_DETR = QUERIES | {
    "backbone_config": RESNET | {"model_type": "rt_detr_resnet", "out_features": STAGES},
    "encoder_in_channels": [8, 16, 16], "encoder_hidden_dim": 32, "num_denoising": 10,
    "decoder_in_channels": [32, 32, 32],
}  # fmt: skip
LAST = QUERIES | {"backbone_config": RESNET | {"model_type": "resnet", "out_features": STAGES[2:]}}
FAMILIES = [
    ("yolos", YOLOS),
    ("detr", LAST),
    ("conditional_detr", LAST),
    ("rt_detr", RT_DETR),
]
VIT = {name: YOLOS[name] for name in list(YOLOS)[:4]} | {"image_size": 48, "patch_size": 8}
SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "image_size": 64, "window_size": 4}


def tiny_detector(family, args=None, classes=2):
    """A tiny detector with fresh weights."""
    args = dict(FAMILIES)[family] if args is None else args
    config = transformers.AutoConfig.for_model(family, num_labels=classes, **args)
    torch.manual_seed(0)
    return wrapping.wrap(transformers.AutoModelForObjectDetection.from_config(config).eval())


def detection_data(root, side=48, **augment):
    return Data(dataset=str(root), image_size=side, augment=Augment(none=not augment, **augment))


def detection_batch(root, opened, split="train", size=4, training=False, task=None, **how):
    task = task or registry.get("detection")
    found = task.open(detection_data(root, **how), split, inputs=opened.inputs, training=training)
    return next(iter(loader(found, batch_size=size)))
