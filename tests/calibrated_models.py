"""Tiny models whose layers count, and samples to calibrate them on."""

from __future__ import annotations

import torch

from pelacli.models import examples, opening

SMALL = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 200,
    "max_position_embeddings": 32,
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 200}
TOWER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
CLIP = {
    "text_config": TOWER | {"vocab_size": 200, "bos_token_id": 0, "eos_token_id": 199},
    "vision_config": TOWER | {"image_size": 32, "patch_size": 8},
    "projection_dim": 16,
}
FALCON = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 200,
    "max_position_embeddings": 32, "bias": True,
}  # fmt: skip


def opened(name, args):
    model = opening.open(name, weights="random", model_args=args)
    generator = torch.Generator().manual_seed(1)
    # Fresh models are almost constant functions; larger weights make their layers count, and their
    # spectra fall, as those of trained ones do.
    for parameter in model.module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fall = torch.arange(1, parameter.shape[-1] + 1) ** -1.0 if parameter.ndim == 2 else 0.2
        parameter.data.add_(0.5 * noise * fall)
    return model


def samples(model, count=48, batch=8, length=12):
    """Batches of images and of tokens, some of them padding."""
    shapes, found = examples.example(model), []
    generator = torch.Generator().manual_seed(2)
    for _ in range(count // batch):
        if isinstance(shapes, torch.Tensor):
            found.append(torch.randn(batch, *shapes.shape[1:], generator=generator))
            continue
        one = {}
        for name, value in shapes.items():
            if name == "attention_mask":
                one[name] = torch.arange(length).repeat(batch, 1) < length - 3
                one[name] = one[name].long()
            elif name.endswith("input_ids"):
                size = length if name == "input_ids" else length - 2
                one[name] = torch.randint(1, 190, (batch, size), generator=generator)
                one[name][:, length - 4] = value[0, -1]  # the end of the text
            else:
                one[name] = torch.randn(batch, *value.shape[1:], generator=generator)
        found.append(one)
    return found
