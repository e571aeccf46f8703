"""Names of tensors to which a wrapper added something: DDP and AveragedModel put ``module.`` in
front, torch.compile ``_orig_mod.``, Lightning ``model.``, and so on.

The model knows its tensors without that. `attempts` says what the names may have been; whoever
fills the model tries them one after another, and takes what fits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from pelacli.console import warn

# In front of every name of the model.
_IN_FRONT = (
    "module.", "model.", "net.", "network.", "state_dict.",
    "model_ema.", "ema_model.", "ema.", "averaged_model.",
)  # fmt: skip
# Anywhere: a block may be compiled, or wrapped for FSDP, by itself. No model calls a part so.
_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_COUNTERS = ("n_averaged",)  # torch's AveragedModel keeps it beside the weights


@dataclass(frozen=True)
class Unwrapping:
    """One way to take wrappers off the names of a file.

    Attributes:
        names: name in the file → name without wrappers.
        removed: what was taken off, for messages: ("module.", "_orig_mod.").
    """

    names: Mapping[str, str]
    removed: tuple[str, ...]

    def say(self, where: object) -> None:
        """Say it on standard error."""
        warn(f"{where}: took {', '.join(self.removed)} off the names of the tensors")


def attempts(names: Collection[str]) -> Iterator[Unwrapping]:
    """What the names of a file may have been before they were wrapped, the least taken off first;
    nothing where no wrapper shows."""
    now = {name: name for name in names if name not in _COUNTERS}
    removed: list[str] = []
    for wrapper in _ANYWHERE:
        if any(wrapper in name for name in now):
            now = {name: inner.replace(wrapper, "") for name, inner in now.items()}
            removed.append(wrapper)
    if removed:
        yield Unwrapping(dict(now), tuple(removed))
    while front := common_front(now.values()):
        if front not in _IN_FRONT:
            return
        now = {name: inner.removeprefix(front) for name, inner in now.items()}
        removed.append(front)
        yield Unwrapping(dict(now), tuple(removed))


def common_front(names: Collection[str]) -> str:
    """The part up to the first dot, with it, that all names have in common; "" where they have
    none."""
    fronts = {name.partition(".")[0] + "." if "." in name else "" for name in names}
    return fronts.pop() if len(fronts) == 1 else ""
