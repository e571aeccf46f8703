"""The output of language models in two parts: hidden states, and the head that makes the logits.

With a vocabulary of 150,000 the logits of a few thousand tokens are larger than the model. In two
parts they need only be there for some tokens at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pelacli.models.prediction import predict, without_cache

_PROBE = 8  # tokens that a split is tried on


class TokenHead(Protocol):
    """A language model's output in two parts."""

    def hidden(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """States [B, N, width] of a batch, one for each token that gets logits."""
        ...

    def logits(self, rows: Tensor) -> Tensor:
        """Logits [tokens, vocabulary] of states [tokens, width]."""
        ...


def token_head(module: nn.Module, inputs: Any) -> TokenHead | None:
    """The head of a language model; None of any other model.

    Args:
        inputs: a batch, of which a few tokens are tried: the two parts must give what the whole
            gives. A model that can't be taken apart has its logits for states.
    """
    if not isinstance(inputs, Mapping) or not has_vocabulary(module):
        return None
    few = {name: value[:1, :_PROBE] for name, value in inputs.items()}
    with torch.no_grad():
        try:
            whole = predict(module, few)
        except Exception:  # whatever the forward of a model that takes something else may raise
            return None
        if whole.ndim != 3:
            return None
        for name in _bodies(module):
            try:
                head = _SplitHead.of(module, name, few)
                logits = head.logits(head.hidden(few)[0])
            except Exception:  # nor is every body called in the same way
                continue
            if logits.shape == whole[0].shape and torch.allclose(
                logits, whole[0], rtol=1e-3, atol=1e-4
            ):
                return head
    return _WholeHead(module)


def has_vocabulary(module: nn.Module) -> bool:
    """Whether the model's outputs are logits over its vocabulary, as transformers says."""
    embeddings = getattr(module, "get_output_embeddings", None)
    return embeddings is not None and embeddings() is not None


def _bodies(module: nn.Module) -> Iterator[str]:
    """Names of the modules that may give the last hidden states."""
    prefix = getattr(module, "base_model_prefix", "")
    if prefix and isinstance(getattr(module, prefix, None), nn.Module):
        yield prefix
    decoder = getattr(module, "get_decoder", lambda: None)()
    yield from (name for name, m in module.named_modules() if name and m is decoder)


@dataclass(frozen=True)
class _SplitHead:
    """The head apart from the body below it.

    It is the model's own forward with the body replaced by one that gives hidden states back, so
    that whatever a model does to its logits (a scale, a soft cap) is done here too.

    Attributes:
        module: the whole model.
        body: name of the body.
        output_type: what the body returns: one of transformers' ModelOutputs.
    """

    module: nn.Module
    body: str
    output_type: Callable[..., Any]

    @classmethod
    def of(cls, module: nn.Module, body: str, inputs: Mapping[str, Tensor]) -> _SplitHead:
        part = module.get_submodule(body)
        return cls(module, body, type(part(**without_cache(part, inputs))))

    def hidden(self, inputs: Mapping[str, Tensor]) -> Tensor:
        part = self.module.get_submodule(self.body)
        output: Tensor = part(**without_cache(part, inputs))[0]
        return output

    def logits(self, rows: Tensor) -> Tensor:
        given = _Given(self.output_type(last_hidden_state=rows[None]))
        ids = torch.zeros(1, len(rows), dtype=torch.long, device=rows.device)
        with _replaced(self.module, self.body, given):
            logits: Tensor = self.module(input_ids=ids).logits
        return logits[0]


@dataclass(frozen=True)
class _WholeHead:
    """Of a model that can't be taken apart: its states are its logits."""

    module: nn.Module

    def hidden(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return predict(self.module, inputs)

    def logits(self, rows: Tensor) -> Tensor:
        return rows


class _Given(nn.Module):
    """A body that returns this, whatever it is called with."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self._output = output

    def forward(self, *args: object, **kwargs: object) -> Any:
        return self._output


@contextmanager
def _replaced(module: nn.Module, name: str, body: nn.Module) -> Iterator[None]:
    """While active, the module has this body."""
    parent, _, attribute = name.rpartition(".")
    modules = module.get_submodule(parent)._modules
    own = modules[attribute]
    modules[attribute] = body
    try:
        yield
    finally:
        modules[attribute] = own
