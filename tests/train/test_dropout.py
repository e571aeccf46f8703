"""Dropout while training: off in a healing student unless it is asked for, on in fine-tuning."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from pelacli.recipe.training import Pretrain, Train
from pelacli.train import regularisation
from pelacli.train.loop import Objective, RunOptions, fit

WORDS = {"input_ids": torch.arange(24).reshape(2, 12)}


class Words:
    """A loader whose every batch is the same."""

    def __len__(self):
        return 2

    def __iter__(self):
        return iter([{"inputs": WORDS}] * 2)

    def set_epoch(self, epoch, start=0):
        pass

    def close(self):
        pass


def bert():
    """With dropout as a module, and as a function in the attention."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 30}
    shape |= {"intermediate_size": 32, "max_position_embeddings": 16}
    return transformers.BertModel(transformers.BertConfig(**shape))


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=16)
    return transformers.GPT2Model(config)


def swin():
    """With stochastic depth, as transformers builds it."""
    torch.manual_seed(0)
    shape = {"depths": [1, 2], "num_heads": [2, 2], "embed_dim": 16, "image_size": 56}
    return transformers.SwinModel(transformers.SwinConfig(**shape, window_size=7))


def distances(model, settings):
    """How far a model in training is from itself at inference, at each of two steps."""
    with torch.no_grad():
        target = model.eval()(**WORDS).last_hidden_state
    passes = []

    def losses(module, batch, done):
        output = module(**batch["inputs"]).last_hidden_state
        passes.append((output - target).abs().max().item())
        return {"output": output.square().mean()}

    fit(model, Objective(losses), Words(), settings, RunOptions(device="cpu"))
    return passes


@pytest.mark.parametrize("build", [bert, gpt2])
def test_a_healing_student_computes_what_it_computes_at_inference(build):
    still = {"steps": 2, "lr": 0.0, "min_lr": 0.0, "warmup_lr": 0.0}
    assert max(distances(build(), Pretrain(**still))) < 1e-6
    assert min(distances(build(), Pretrain(**still, dropout=True))) > 1e-2
    assert min(distances(build(), Train(**still))) > 1e-2  # fine-tuning keeps it
    assert max(distances(build(), Train(**still, dropout=False))) < 1e-6


@pytest.mark.parametrize(("drop_path", "differs"), [(False, False), (True, True)])
def test_stochastic_depth_stays_where_the_recipe_names_it(drop_path, differs):
    model, images = swin(), torch.randn(8, 3, 56, 56)
    regularisation.set_drop_path(model, 0.5)
    target = model.eval()(images).last_hidden_state
    regularisation.enter_training(model, dropout=False, drop_path=drop_path)
    output = model(images).last_hidden_state
    assert torch.allclose(output, target, atol=1e-5) is not differs


def test_batch_norms_go_on_learning_their_statistics():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.9))
    regularisation.enter_training(model, dropout=False, drop_path=False)
    batch = torch.randn(64, 4) + 3
    assert torch.equal(model(batch), model[0](batch))
    assert model[0].running_mean.mean() > 0.1
