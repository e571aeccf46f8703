"""Open any model by what the user calls it: one function for each kind of reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pelacli.errors import RequestError
from pelacli.manifest.digests import digest_files
from pelacli.messages import did_you_mean
from pelacli.models import config_file, directory, hub, licence, precision
from pelacli.models.libraries import OWN_NAMES, own
from pelacli.models.opened import OpenModel
from pelacli.models.request import Request
from pelacli.models.wrapping import Origin, describe
from pelacli.recipe.aliases import ALIASES, SHAPES

_STATISTICS = ("running_mean", "running_var")


def resolve_alias(ref: str) -> str:
    """The full name behind a short one; any other name as it is."""
    return ALIASES.get(ref, ref)


def open(
    ref: str,
    *,
    weights: str = "pretrained",
    arch: str | None = None,
    model_args: dict[str, Any] | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    meta: bool = False,
    lazy_above: float = math.inf,
) -> OpenModel:
    """Open a model.

    Args:
        ref: a timm name or alias, a hub id, a local directory in timm's hub layout or in
            transformers' layout, a name of pela's own models, or a bare safetensors file (then
            ``arch`` says of what).
        weights: "pretrained", "random", or the path of a safetensors file or of a directory.
        arch: architecture (a timm name) of a bare safetensors file.
        model_args: handed to the architecture (timm's keyword arguments, transformers' config).
        num_classes: output classes, where they differ from the checkpoint's.
        seed: of random weights.
        meta: build the shapes only, without weights.
        lazy_above: bytes of weights, in float32, from which they are left in their files, where
            that can be done: so far in the safetensors files of transformers' models.
            `OpenModel.weights` then reads them one by one.

    Raises:
        RequestError: the model is unknown, or its files can't be used.
        PelaError: the hub can't be reached.
    """
    name = resolve_alias(ref)
    if weights == "random":
        name = SHAPES.get(ref, name)
    torch.manual_seed(seed)
    config_file.check_counts(model_args or {}, f"{ref}: model_args", "give a smaller number")
    opened = _open(
        Request(
            ref,
            name,
            "random" if meta else weights,
            arch,
            model_args or {},
            num_classes,
            only_shapes=meta,
            lazy_above=lazy_above,
        )
    )
    if meta:
        return opened
    opened.module.eval()
    _refuse_non_finite(opened)
    precision.ready_to_run(opened)
    return opened


def _refuse_non_finite(opened: OpenModel) -> None:
    """Refuse NaN and infinity in what a checkpoint holds. Masks and bounds are infinite rightly, so
    of buffers only the statistics of batch normalisation must be finite."""
    for name, tensor in opened.module.state_dict(keep_vars=True).items():
        if tensor.is_meta:  # of a lazily opened model: looked at when it is read
            continue
        finite = torch.isfinite(tensor)
        if not isinstance(tensor, torch.nn.Parameter) and not name.endswith(_STATISTICS):
            finite |= torch.isinf(tensor)
        if not finite.all():
            raise RequestError(
                f"{opened.ref}: {name} holds values that are not finite; the checkpoint is "
                "damaged, fetch it again"
            )


def _open(request: Request) -> OpenModel:
    """Ask each kind of reference in turn; the first that knows the name opens it."""
    if request.arch and not any(Path(name).is_file() for name in (request.name, request.weights)):
        raise RequestError(
            f"--arch {request.arch}: is for a bare safetensors file, and {request.ref} is none; "
            "leave it out"
        )
    for open_kind in KINDS:
        opened = open_kind(request)
        if opened is not None:
            return opened
    from pelacli.models.hf import adapter as hf_adapter
    from pelacli.models.timm import adapter as timm_adapter

    names = [*ALIASES, *OWN_NAMES, *timm_adapter.names(), *hf_adapter.types()]
    otherwise = "see `timm.list_models()`, or give a hub id"
    hint = did_you_mean(request.name, names, n=3, otherwise=otherwise)
    raise RequestError(f"{request.ref}: unknown model; {hint}")


def _with_weights_from_path(request: Request) -> OpenModel | None:
    """An architecture's name, with ``weights`` that are a file or a directory."""
    if request.weights in ("pretrained", "random"):
        return None
    weights = Path(request.weights)
    if not weights.exists():
        raise RequestError(f"--weights {weights}: there is no such file or directory")
    if Path(request.name).exists():
        raise RequestError(
            f"{request.ref} is a path already; give --weights with an architecture only"
        )
    if weights.is_file():
        return _weights_file(request, weights, request.arch or request.name)
    opened = directory.open_directory(replace(request, weights="pretrained"), weights)
    _refuse_another(request, opened, weights)
    return opened


def _refuse_another(request: Request, opened: OpenModel, weights: Path) -> None:
    """Refuse weights of a model that has another architecture than the one that was named; what the
    hub's models are is not asked.

    Raises:
        RequestError: with both names.
    """
    name = request.name.partition(".")[0]
    of_transformers = getattr(getattr(opened.module, "config", None), "model_type", None)
    kinds = {opened.source.architecture, opened.library, of_transformers}
    if "/" not in name and name not in kinds:
        kind = of_transformers or opened.source.architecture
        raise RequestError(
            f"--weights {weights}: holds a model of {kind}, and {request.ref} is another; give the "
            f"directory as the model"
        )


def _local_directory(request: Request) -> OpenModel | None:
    path = Path(request.name)
    return directory.open_directory(request, path) if path.is_dir() else None


def _local_file(request: Request) -> OpenModel | None:
    """A bare file of weights, which needs ``arch``."""
    path = Path(request.name)
    if not path.is_file():
        return None
    if path.suffix != ".safetensors" and request.arch not in OWN_NAMES:
        raise RequestError(
            f"{request.ref}: pela reads safetensors files and model directories only; a checkpoint "
            f"of {', '.join(OWN_NAMES)} needs --arch"
        )
    if request.weights == "random":
        raise RequestError(
            f"{request.ref}: holds weights; --weights random is for an architecture's name"
        )
    if not request.arch:
        raise RequestError(f"{request.ref}: a bare safetensors file needs --arch, a timm name")
    return _weights_file(request, path, request.arch)


def _own_name(request: Request) -> OpenModel | None:
    """A model of pela's own with random weights."""
    if request.name not in OWN_NAMES:
        return None
    if request.weights != "random":
        raise RequestError(f"{request.ref}: give its checkpoint with --weights FILE, or random")
    return _own_model(request, request.name, None)


def _timm_name(request: Request) -> OpenModel | None:
    from pelacli.models.timm import adapter as timm_adapter

    name, weights = request.name, request.weights
    if not timm_adapter.is_model(name):
        return None
    file, digest = None, None
    on_the_hub = timm_adapter.on_the_hub(name)
    if on_the_hub is not None and weights != "random":
        repo, file_name = on_the_hub
        file = hub.fetch(repo, weights=True, file=file_name) / (file_name or "model.safetensors")
        digest = digest_files([file])
    with request.building():
        module = timm_adapter.build(
            name,
            num_classes=request.num_classes,
            model_args=request.model_args,
            weights=weights,
            file=file,
        )
    terms: dict[str, str] = {}
    if weights != "random":
        card = {} if file is None else licence.of_card(file.parent)
        terms = card or licence.of_timm(getattr(module, "pretrained_cfg", None))
    return describe(request.ref, module, "timm", Origin(name, weights, digest, terms))


def _hub_id(request: Request) -> OpenModel | None:
    name = request.name
    if "/" not in name:
        return None
    if Path(name).suffix == ".safetensors" or name.startswith((".", "/", "~")):
        raise RequestError(f"{request.ref}: there is no such file or directory")
    if (first := Path(name).parts[0]) and Path(first).is_file():
        raise RequestError(f"{request.ref}: {first} is a file, not a directory")
    repo = hub.bare(name)
    folder = hub.fetch(repo, weights=request.weights == "pretrained")
    return directory.open_directory(request, folder, hub_id=repo)


def _transformers_family(request: Request) -> OpenModel | None:
    """A ``model_type`` of transformers in its default shape, with random weights."""
    from pelacli.models.hf import adapter as hf_adapter

    if not hf_adapter.is_type(request.name):
        return None
    if request.weights != "random":
        raise RequestError(
            f"{request.ref}: is a family of transformers, not a checkpoint; give a hub id "
            "(owner/name), or --weights random for its default shape"
        )
    with request.building():
        module = hf_adapter.build_random(request.name, request.model_args, request.num_classes)
    return describe(request.ref, module, "transformers", Origin(request.name, "random"))


# What a reference may be, in the order in which it is asked. A new kind is one more function.
KINDS: tuple[Callable[[Request], OpenModel | None], ...] = (
    _with_weights_from_path,
    _local_directory,
    _local_file,
    _own_name,
    _timm_name,
    _hub_id,
    _transformers_family,
)


def _weights_file(request: Request, file: Path, arch: str) -> OpenModel:
    """A bare file of weights of an architecture of timm's or pela's own."""
    arch = resolve_alias(arch)
    if arch in OWN_NAMES:
        return _own_model(request, arch, file)
    from pelacli.models.timm import adapter as timm_adapter

    if not timm_adapter.is_model(arch):
        hint = did_you_mean(arch, [*ALIASES, *timm_adapter.names()], n=3, before="; ")
        raise RequestError(f"--arch {arch}: timm has no such architecture{hint}")
    if file.suffix != ".safetensors":
        raise RequestError(
            f"{file}: pela reads timm's weights from .safetensors files; save its tensors as one "
            "with safetensors.torch.save_file"
        )
    module = timm_adapter.build(
        arch,
        num_classes=request.num_classes,
        model_args=request.model_args,
        weights="pretrained",
        file=file,
        own_classes=True,
    )
    origin = Origin(arch, str(file), digest_files([file]))
    return describe(request.ref, module, "timm", origin)


def _own_model(request: Request, name: str, file: Path | None) -> OpenModel:
    """A model of pela's own, with the weights of its checkpoint or random ones."""
    library_name = OWN_NAMES[name]
    adapter = own(library_name)
    with request.building():
        module = adapter.build(
            name, model_args=request.model_args, num_classes=request.num_classes, weights=file
        )
    if file is None:
        return describe(request.ref, module, library_name, Origin(name, "random"))
    origin = Origin(name, str(file), digest_files([file]))
    opened = describe(request.ref, module, library_name, origin, file.parent)
    beside = [path for name in _BESIDE if (path := file.parent / name).is_file()]
    opened.carried = {path.name: path.read_bytes() for path in beside}
    return opened


# What belongs to a bare file of weights, of all that may lie beside it.
_BESIDE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
