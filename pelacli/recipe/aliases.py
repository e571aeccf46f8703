"""Short names of well-known models."""

from __future__ import annotations

# Short name → the classic checkpoint of the family: the one its paper reports.
ALIASES = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "vit_large": "vit_large_patch16_224",
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "deit_base": "deit_base_patch16_224",
    "deit3_small": "deit3_small_patch16_224",
    "deit3_base": "deit3_base_patch16_224",
    "deit3_large": "deit3_large_patch16_224.fb_in1k",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224.ms_in1k",
    "swin_large": "swin_large_patch4_window7_224",
    "swinv2_base": "swinv2_base_window8_256",
    "beit_base": "beit_base_patch16_224",
    "beit_large": "beit_large_patch16_224",
    "eva02_base": "eva02_base_patch14_224",
    "dinov2_small": "vit_small_patch14_dinov2",
    "dinov2_base": "vit_base_patch14_dinov2",
    "dinov2_large": "vit_large_patch14_dinov2",
    "convnext_base": "convnext_base",
    "bert_base": "google-bert/bert-base-uncased",
    "bert_large": "google-bert/bert-large-uncased",
    "roberta_base": "FacebookAI/roberta-base",
    "distilbert_base": "distilbert/distilbert-base-uncased",
    "mpnet_base": "microsoft/mpnet-base",
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "clip_base": "openai/clip-vit-base-patch16",
    "gpt2": "openai-community/gpt2",
}

# The family of transformers whose default configuration is the short name's shape: what the name
# means where weights are random and no checkpoint has to be fetched.
SHAPES = {
    "bert_base": "bert",
    "roberta_base": "roberta",
    "distilbert_base": "distilbert",
    "mpnet_base": "mpnet",
    "clip_base": "clip",
    "gpt2": "gpt2",
}
