"""Fill a class of transformers from a directory's weights. What is missing, left over or of another
shape is refused, unless transformers itself says that it may be so; then it is said."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn

from pelacli.console import warn
from pelacli.errors import RequestError
from pelacli.manifest.digests import bytes_of
from pelacli.messages import one_line
from pelacli.models import config_file, extent, wrapped_names
from pelacli.models.hf import classes
from pelacli.models.hf.weight_choice import files_of
from pelacli.models.misfits import Misfit, listed
from pelacli.models.weight_files import refuse_other_types, shapes, stored_tensors
from pelacli.system import bytes_done

_LOADING = "Loading weights"  # what transformers calls its bar over the tensors of a checkpoint


@dataclass
class _Reading:
    """A class filled as far as the file goes.

    Attributes:
        misfit: what does not fit.
        notes: what does not fit either, and may be so.
        heads: classes of the family that would take what is left over.
    """

    module: nn.Module
    misfit: Misfit
    notes: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)


def load(directory: Path, config: Any, num_classes: int | None) -> nn.Module:
    """The class that the config names, filled.

    Args:
        config: with ``num_classes``, where these are given.
        num_classes: as the user asked; what they decide may be fresh. None: the checkpoint's.

    Raises:
        RequestError: the weights can't be read or don't fit.
    """
    files = files_of(directory, config)
    stored = {name: shape for file in files for name, shape in shapes(file).items()}
    cls = classes.class_of(config)
    extent.check(
        lambda: classes.built(cls, copy.deepcopy(config)),
        stored.values(),
        f"{directory / config_file.FILE}",
        "restore the file",
    )
    reading = first = _read(cls, directory, config, num_classes)
    names = {name: name for name in stored}
    for unwrapping in wrapped_names.attempts(stored) if first.misfit else ():
        reading = _read(cls, directory, config, num_classes, _renamed(files, unwrapping.names))
        if not reading.misfit:
            unwrapping.say(directory)
            names = dict(unwrapping.names)
            break
    if reading.misfit:
        reading = _encoder_of_sentences(first, directory, config)
    if reading.misfit:
        raise _refusal(first, directory, config)
    if config.architectures and classes.named(config) is None:
        reading.notes.append(
            f"config.json names {', '.join(config.architectures)}, which transformers has not; "
            f"opened as {type(reading.module).__name__}"
        )
    for note in reading.notes:
        warn(f"{directory}: {note}")
    module: Any = reading.module
    base = f"{module.base_model_prefix}."
    refuse_other_types(files, module, lambda name: _spellings(names.get(name, name), base))
    return reading.module


def refuse_quantised(directory: Path) -> None:
    """Refuse a checkpoint whose weights are no plain numbers by its configuration.

    Raises:
        RequestError: naming the method.
    """
    for method in _methods(config_file.read(directory, "restore the file")):
        raise RequestError(
            f"{directory}: is quantised ({method}), as quantization_config of its config.json says;"
            " take the checkpoint in float16, bfloat16 or float32 that it was made of"
        )


def _methods(part: Any) -> Iterator[str]:
    for key, value in part.items() if isinstance(part, dict) else ():
        if key in ("quantization_config", "compression_config") and value:
            method = value.get("quant_method") if isinstance(value, dict) else None
            yield str(method or "by a method of its own")
        else:
            yield from _methods(value)


def _renamed(files: list[Path], names: Mapping[str, str]) -> dict[str, Tensor]:
    return {names[t.name]: t.tensor for t in stored_tensors(files) if t.name in names}


def _read(
    cls: Any,
    directory: Path,
    config: Any,
    num_classes: int | None,
    tensors: dict[str, Tensor] | None = None,
) -> _Reading:
    """Fill a class, and sort out what does not fit.

    Args:
        tensors: in place of what the directory holds.
    """
    with quiet(), _watched(files_of(directory, config)):
        try:
            module, info = cls.from_pretrained(
                directory if tensors is None else None,
                config=config,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                state_dict=tensors,
                trust_remote_code=False,
            )
        except Exception as error:  # transformers raises whatever its file readers raise
            raise RequestError(
                f"{directory}: the weights can't be loaded: {one_line(error)}; "
                "take the config.json that belongs to them"
            ) from None
    misfit = Misfit(
        unexpected={name for name in info["unexpected_keys"] if not _is_computed(module, name)},
        # A table of integers is computed when the class is built; no training changes it.
        missing={name for name in info["missing_keys"] if _is_learned(module, name)},
    )
    reading = _Reading(module, misfit)
    mismatched = {name: (old, new) for name, old, new in info["mismatched_keys"]}
    if num_classes is not None and (misfit.missing or mismatched):
        _allow_fresh_classes(reading, config, mismatched)
    misfit.shapes = [
        f"{name}: is {list(old)} in the weights, and {list(new)} by config.json"
        for name, (old, new) in sorted(mismatched.items())
    ]
    if misfit.unexpected and not misfit.missing:
        with quiet():
            _allow_heads_of_others(reading, config)
    return reading


@contextlib.contextmanager
def _watched(files: Iterable[Path]) -> Iterator[None]:
    """While active, `bytes_done` hears of each tensor that transformers loads out of the files:
    what makes its progress bars is asked for one, and counts instead."""
    size = bytes_of(files)

    def counted(factory: Any, args: Any, how: Any) -> Any:
        if how.get("desc") != _LOADING or not args or not hasattr(args[0], "__len__"):
            return factory(*args, **how)
        return _counting(args[0], size)

    before = transformers.logging.set_tqdm_hook(counted)
    try:
        yield
    finally:
        transformers.logging.set_tqdm_hook(before)


def _counting(items: Collection[Any], size: int) -> Iterator[Any]:
    with bytes_done.part("reading", size):
        for number, item in enumerate(items, 1):
            yield item
            bytes_done.reach(size * number / len(items), size)


def _is_computed(module: Any, name: str) -> bool:
    """Whether a tensor is computed when the class is built, and not stored. Older versions of
    transformers stored some of these (``position_ids``)."""
    computed = {name for name, _ in module.named_buffers()} - module.state_dict().keys()
    return not computed.isdisjoint(_spellings(name, f"{module.base_model_prefix}."))


def _is_learned(module: nn.Module, name: str) -> bool:
    tensor = module.state_dict(keep_vars=True).get(name)
    return tensor is None or tensor.is_floating_point()


def _allow_fresh_classes(
    reading: _Reading, config: Any, mismatched: dict[str, tuple[Any, Any]]
) -> None:
    """What the number of classes decides may be missing or of another shape: the user asked for
    another number."""
    cls = type(reading.module)
    now = classes.shapes_of(cls, config)
    more = classes.shapes_of(cls, config, num_labels=config.num_labels + 1)
    decided = {name for name, shape in now.items() if more.get(name) != shape}
    fresh = decided & {*reading.misfit.missing, *mismatched}
    reading.misfit.missing = set(reading.misfit.missing) - fresh
    for name in fresh & mismatched.keys():
        del mismatched[name]
    if fresh:
        reading.notes.append(f"{listed(fresh)}: fresh, for num_classes = {config.num_labels}")


def _allow_heads_of_others(reading: _Reading, config: Any) -> None:
    """Checkpoints hold the heads of more tasks than one (BERT's). What another class of the family
    takes, and the class that config.json names does not have, may be left out."""
    left = set(reading.misfit.unexpected)
    named = classes.named(config)
    takes: dict[str, int] = {}  # class of the family → how much of what is left over it has
    for cls in classes.family(config):
        with contextlib.suppress(Exception):  # a class that this configuration can't build
            base = f"{cls.base_model_prefix}."
            names = {n for name in classes.shapes_of(cls, config) for n in _spellings(name, base)}
            if taken := len(names.intersection(reading.misfit.unexpected)):
                takes[cls.__name__] = taken
            left -= names
        if not left and named is not None:
            break
    if left:
        return
    reading.heads = sorted(takes, key=lambda name: -takes[name])
    if named is not None:
        reading.notes.append(
            f"left out {listed(reading.misfit.unexpected)}, which {reading.heads[0]} has and "
            f"{type(reading.module).__name__}, the class that config.json names, has not"
        )
        reading.misfit.unexpected = set()


def _spellings(name: str, base: str) -> tuple[str, ...]:
    """A tensor's name with and without what stands before the family's base model."""
    return (name, name.removeprefix(base), base + name)


def _encoder_of_sentences(reading: _Reading, directory: Path, config: Any) -> _Reading:
    """sentence-transformers opens the encoder alone, whatever class config.json names, and keeps no
    head with it."""
    encoder = classes.encoder(config)
    if not (directory / "modules.json").is_file() or encoder is None or not reading.misfit.missing:
        return reading
    again = _read(encoder, directory, config, None)
    again.notes.append(
        f"opened as {encoder.__name__}, as sentence-transformers does: it has no weights for the "
        f"head of {type(reading.module).__name__}, which config.json names"
    )
    return again


def _refusal(reading: _Reading, directory: Path, config: Any) -> RequestError:
    misfit, name = reading.misfit, type(reading.module).__name__
    base: str = reading.module.base_model_prefix  # type: ignore[assignment]
    asked = ", ".join(config.architectures or [])
    encoder = classes.encoder(config)
    remedy = "take the config.json that belongs to these weights"
    headless = not (misfit.unexpected or misfit.shapes) and reading.module.__class__ is not encoder
    if reading.heads:
        asked = f"names {asked}, which transformers has not" if asked else "names no class"
        heads = ", ".join(reading.heads[:3])
        remedy = f'config.json {asked}; set "architectures" there to their class ({heads})'
    elif headless and encoder and not any(key.startswith(f"{base}.") for key in misfit.missing):
        remedy = (
            f'its weights are an encoder alone; set "architectures": ["{encoder.__name__}"] in '
            "config.json, and give it a head by `pela finetune`"
        )
    return misfit.refusal(directory, name, remedy)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars or load reports of transformers: pela says what matters itself."""
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
