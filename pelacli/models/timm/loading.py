"""Build a timm model and fill it, and see what of the file and of the model does not fit.

timm itself reads the file and renames what it knows. It stops being strict where the number of
classes changes, and for some architectures; what it left out is seen here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from pelacli.console import warn
from pelacli.errors import RequestError
from pelacli.messages import one_line
from pelacli.models import config_file, extent, precision, wrapped_names
from pelacli.models.misfits import Misfit, listed
from pelacli.models.weight_files import refuse_other_types, shapes, stored_tensors, types
from pelacli.models.without_values import on_meta
from pelacli.system import bytes_done, logs

# Arguments of timm.create_model that would have it read other files than those pela knows of.
_NOT_OF_MODELS = {
    "model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path",
    "cache_dir",
}  # fmt: skip


@dataclass(frozen=True)
class _Order:
    """What timm is to build.

    Attributes:
        name: architecture, with or without tag, or ``local-dir:PATH`` in hub layout.
        num_classes: as the user asked; None: the file's, or the architecture's own.
        overlay: of timm's pretrained_cfg.
    """

    name: str
    num_classes: int | None
    model_args: Mapping[str, Any]
    overlay: Mapping[str, Any] | None = None

    def create(self, *, pretrained: bool) -> nn.Module:
        with quiet():
            module: nn.Module = timm.create_model(
                self.name,
                pretrained=pretrained,
                pretrained_cfg_overlay=None if self.overlay is None else dict(self.overlay),
                num_classes=self.num_classes,
                **self.model_args,
            )
        return module


class _MisfitError(Exception):
    def __init__(self, misfit: Misfit) -> None:
        super().__init__()
        self.misfit = misfit


def build(
    name: str,
    *,
    num_classes: int | None,
    model_args: dict[str, Any],
    weights: str,
    file: Path | None = None,
    own_classes: bool = False,
) -> nn.Module:
    """Build a timm model.

    Args:
        name: architecture, with or without tag, or ``local-dir:PATH`` in hub layout.
        weights: "random", or anything else for the checkpoint: the file where one is given.
        own_classes: the file may have a head of any size, and has it in the model too, unless
            ``num_classes`` says otherwise. timm must know its size, or it takes the head for one of
            the architecture's usual size, drops it, and stops being strict.

    Raises:
        RequestError: unknown tag, arguments or weights that don't fit.
        PelaError: the weights can't be fetched.
    """
    for key in _NOT_OF_MODELS & model_args.keys():
        raise RequestError(
            f"{name}: model_args.{key}: is no argument of an architecture; leave it out, and name "
            "a checkpoint with --weights"
        )
    order = _Order(name, num_classes, model_args)
    with _refusals(name, file):
        _check_extent(order, None if weights == "random" else file)
        if weights == "random":
            return order.create(pretrained=False)
        if file is None:
            return _loaded(order, name)
        if file.suffix != ".safetensors":
            return _from_pickle(order, file)
        return _from_file(order, file, own_classes)


def _check_extent(order: _Order, file: Path | None) -> None:
    is_read = file is not None and file.suffix == ".safetensors"
    source, _, folder = order.name.partition(":")
    extent.check(
        lambda: order.create(pretrained=False),
        shapes(file).values() if is_read and file is not None else None,
        str(Path(folder) / config_file.FILE) if source == "local-dir" else order.name,
        "change model_args" if order.model_args else "restore the file",
    )


def _from_file(order: _Order, file: Path, own_classes: bool) -> nn.Module:
    """The model with a file's weights, whose names may be wrapped."""
    stored = shapes(file)
    if not stored:
        raise RequestError(f"{file}: holds no tensors; take the file that holds the weights")
    numbers = sum(math.prod(shape) for shape in stored.values())
    with bytes_done.part("reading", numbers * torch.float32.itemsize):  # which timm makes of them
        module, removed = _filled(order, file, stored, own_classes)
    if removed:
        removed.say(file)
    names = removed.names if removed else {name: name for name in stored}
    refuse_other_types([file], module, lambda name: [names.get(name, name)])
    # timm makes float32 of everything.
    precision.like(module, {names.get(name, name): kind for name, kind in types(file).items()})
    return module


def _filled(
    order: _Order, file: Path, stored: Mapping[str, tuple[int, ...]], own_classes: bool
) -> tuple[nn.Module, wrapped_names.Unwrapping | None]:
    """(the filled model, what was taken off the file's names)."""
    attempts = list(wrapped_names.attempts(stored))
    try:
        module = _loaded(_of_file(order, file, stored, own_classes), file)
        # timm takes some wrappers off without a word.
        return module, attempts[0] if attempts and not stored.keys() & module.state_dict() else None
    except _MisfitError as first:
        for removed in attempts:
            try:
                module = _loaded(_unwrapped(order, file, stored, own_classes, removed), file)
            except _MisfitError:
                continue
            module.pretrained_cfg.pop("state_dict", None)  # type: ignore[operator,union-attr]
            return module, removed
        raise first.misfit.refusal(file, _architecture(order)) from None


def _from_pickle(order: _Order, file: Path) -> nn.Module:
    """The model with the weights of another kind of file, of those that the hub still has."""
    module = _loaded(replace(order, overlay={"file": str(file), "source": ""}), file)
    if file.suffix in (".npz", ".npy"):  # JAX's, in float32
        return module
    tensors = timm.models.load_state_dict(str(file), device="meta", weights_only=True)
    precision.like(module, {name: tensor.dtype for name, tensor in tensors.items()})
    return module


def _of_file(
    order: _Order, file: Path, stored: Mapping[str, tuple[int, ...]], own_classes: bool
) -> _Order:
    order = replace(order, overlay={"file": str(file), "source": ""})
    return _with_own_classes(order, stored) if own_classes else order


def _unwrapped(
    order: _Order,
    file: Path,
    stored: Mapping[str, tuple[int, ...]],
    own_classes: bool,
    unwrapping: wrapped_names.Unwrapping,
) -> _Order:
    names = unwrapping.names
    tensors = {names[t.name]: t.tensor for t in stored_tensors([file]) if t.name in names}
    order = replace(order, overlay={"state_dict": tensors, "source": ""})
    inner = {names[name]: shape for name, shape in stored.items() if name in names}
    return _with_own_classes(order, inner) if own_classes else order


def _with_own_classes(order: _Order, stored: Mapping[str, tuple[int, ...]]) -> _Order:
    """The order for a file with a head of any size."""
    cfg = timm.get_pretrained_cfg(order.name)
    classifiers = _classifiers(cfg.classifier if cfg is not None else None)
    if not classifiers:
        return order
    shape = stored.get(f"{classifiers[0]}.weight")
    classes = shape[0] if shape else 0
    return replace(
        order,
        num_classes=classes if order.num_classes is None else order.num_classes,
        overlay={**(order.overlay or {}), "num_classes": classes, "label_offset": 0},
    )


def _loaded(order: _Order, where: object) -> nn.Module:
    """The filled model.

    Raises:
        _MisfitError: the file holds what timm has no place for, or lacks what it needs.
    """
    with _differences() as misfit:
        try:
            module = order.create(pretrained=True)
        except RuntimeError as error:
            if "Error(s) in loading state_dict" not in str(error):
                raise
            wrong = [line.strip().rstrip(".") for line in str(error).splitlines()]
            misfit.shapes = [line for line in wrong if line.startswith("size mismatch")]
            raise _MisfitError(misfit) from None
    if not misfit:
        return module
    own = int(module.pretrained_cfg.get("num_classes") or 0)  # type: ignore[operator,union-attr]
    with_own = replace(order, num_classes=own)
    fresh: set[str] = set()
    if order.num_classes not in (None, own):
        fresh = _decided_by_classes(module, with_own) & set(misfit.missing)
    rest = Misfit(set(misfit.unexpected) - fresh, set(misfit.missing) - fresh)
    if rest and fresh:
        # With the file's own number of classes timm is as strict as it ever is.
        with torch.random.fork_rng(devices=[]):
            _loaded(with_own, where)
    elif rest:
        _check_lenient(rest, module)
        warn(f"{where}: timm loads it without {listed({*rest.unexpected, *rest.missing})}")
    if fresh:
        warn(f"{where}: {listed(fresh)}: fresh, for num_classes = {order.num_classes}")
    return module


def _decided_by_classes(module: nn.Module, with_own: _Order) -> set[str]:
    """The tensors that are there, or have their shape, by the number of classes."""
    with torch.random.fork_rng(devices=[]), on_meta():
        other = with_own.create(pretrained=False)
    one, two = ({(k, t.shape) for k, t in m.state_dict().items()} for m in (module, other))
    return {name for name, _ in one ^ two}


def _check_lenient(misfit: Misfit, module: nn.Module) -> None:
    """Where timm is not strict about an architecture, a norm of the head may be missing (DaViT of
    Florence-2, ConvNeXt of FCMAE), and a whole part unused (SigLIP's pooling).

    Raises:
        _MisfitError: anything else does not fit.
    """
    parts = dict(module.named_children())
    known = [name for name in misfit.unexpected if name.partition(".")[0] in parts]
    about: Any = module.pretrained_cfg
    heads = {name.partition(".")[0] for name in _classifiers(about.get("classifier"))}
    needed = [name for name in misfit.missing if name.partition(".")[0] not in heads]
    if known or needed:
        raise _MisfitError(misfit)


def _classifiers(named: Any) -> tuple[str, ...]:
    """The classifiers' modules, as timm's pretrained_cfg names none, one or several."""
    return tuple(named) if isinstance(named, tuple | list) else (named,) if named else ()


def _architecture(order: _Order) -> str:
    """What messages call the model."""
    source, _, path = order.name.partition(":")
    if source != "local-dir":
        return order.name
    return str(config_file.read(Path(path), "restore the file").get("architecture"))


@contextmanager
def _differences() -> Iterator[Misfit]:
    """What torch finds unexpected or missing when a model is built and filled in the block. timm
    keeps it to itself."""
    misfit, handles = Misfit(), []
    watched: dict[int, nn.Module] = {}  # holds them, so that no other gets the same id

    def note(module: nn.Module, keys: Any) -> None:  # the whole model's, and called for it last
        misfit.unexpected, misfit.missing = list(keys.unexpected_keys), list(keys.missing_keys)
        leaves = [child for child in module.children() if not any(child.children())]
        own = (p for part in (module, *leaves) for p in part.parameters(recurse=False))
        bytes_done.done(sum(p.nbytes for p in own))

    def watch(module: nn.Module, name: str, child: nn.Module) -> None:
        if id(module) not in watched:
            watched[id(module)] = module
            hook = module.register_load_state_dict_post_hook(note)  # type: ignore[no-untyped-call]
            handles.append(hook)

    handles.append(register_module_module_registration_hook(watch))
    try:
        yield misfit
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _refusals(name: str, file: Path | None) -> Iterator[None]:
    """What timm raises, in one line."""
    try:
        yield
    except _MisfitError as error:
        raise error.misfit.refusal(file or name, name) from None
    except RuntimeError as error:
        text = str(error)
        if "No pretrained weights exist" in text:
            raise RequestError(
                f"{name}: timm has no pretrained weights of it; use --weights random or a path"
            ) from None
        raise RequestError(f"{file or name}: the weights don't fit: {one_line(text)}") from None
    except TypeError as error:
        raise RequestError(f"{name}: model_args don't fit: {one_line(error)}") from None
    except (ValueError, AssertionError, ArithmeticError, LookupError, AttributeError) as error:
        # What a builder makes of arguments that it does not check.
        text = f": {one_line(error, 160)}" if str(error) else ""
        reason = f"{type(error).__name__}{text}"
        raise RequestError(f"{name}: can't be built with these settings: {reason}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """timm and the hub client log their retries; the user gets our one line instead."""
    with logs.at_level(("timm", "huggingface_hub", "httpx"), logging.CRITICAL):
        yield
