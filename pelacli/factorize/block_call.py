"""What a block is called with, and the states among what it is given and gives."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_STATES = ("hidden_states", "x")  # what blocks call the states where they take them by name


class NotASequenceError(Exception):
    """The model is no plain sequence of its blocks."""


@dataclass(frozen=True)
class BlockCall:
    """What a block is called with beside the states."""

    keyword: str | None  # of the states; None where they are the first argument
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, block: nn.Module, states: Tensor) -> Tensor:
        args, kwargs = (_fresh(part) for part in (self.args, self.kwargs))
        if self.keyword is None:
            output = block(states, *args, **kwargs)
        else:
            output = block(*args, **{self.keyword: states}, **kwargs)
        return states_of(output)

    def to(self, device: torch.device) -> BlockCall:
        """The same with its tensors on a device."""
        return BlockCall(self.keyword, _moved(self.args, device), _moved(self.kwargs, device))

    def tensors(self) -> Iterator[Tensor]:
        yield from _tensors((self.args, self.kwargs))

    @classmethod
    def split(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, BlockCall]:
        """The states of a call, and the rest of it."""
        if args:
            states, call = args[0], cls(None, args[1:], kwargs)
        else:
            keyword = next((name for name in _STATES if name in kwargs), None)
            if keyword is None:
                raise NotASequenceError
            others = {name: value for name, value in kwargs.items() if name != keyword}
            states, call = kwargs[keyword], cls(keyword, (), others)
        if not isinstance(states, Tensor):
            raise NotASequenceError
        return states, call


def states_of(output: Any) -> Tensor:
    """The states that a block gives: its output, or the first part of it."""
    states = output[0] if type(output) is tuple and output else output
    if not isinstance(states, Tensor):
        raise NotASequenceError
    return states


def _fresh(value: Any) -> Any:
    """An argument for one call: what a block may change (a cache of keys) is a copy."""
    if isinstance(value, Tensor | str | int | float | None):
        return value.detach() if isinstance(value, Tensor) else value
    if type(value) in (tuple, list):
        return type(value)(map(_fresh, value))
    if isinstance(value, Mapping):
        return {name: _fresh(item) for name, item in value.items()}
    return copy.deepcopy(value)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) in (tuple, list):
        return type(value)(_moved(item, device) for item in value)
    if type(value) is dict:
        return {name: _moved(item, device) for name, item in value.items()}
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
