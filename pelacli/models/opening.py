"""Open any model by what the user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from pelacli.console import warn
from pelacli.errors import RequestError
from pelacli.manifest.digests import digest_file, digest_files, plain_weight_files
from pelacli.messages import closest
from pelacli.models import hub
from pelacli.models.carried import carried
from pelacli.models.libraries import OWN_NAMES, library, own
from pelacli.models.opened import OpenModel
from pelacli.models.weight_files import refuse_non_finite
from pelacli.models.weight_files import shapes as _shapes
from pelacli.models.wrapping import describe
from pelacli.recipe.aliases import ALIASES, SHAPES


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

    Raises:
        RequestError: the model is unknown, or its files can't be used.
        PelaError: the hub can't be reached.
    """
    name, model_args = resolve_alias(ref), model_args or {}
    if weights == "random":
        name = SHAPES.get(ref, name)
    torch.manual_seed(seed)
    if meta:
        from accelerate import init_empty_weights

        with init_empty_weights(include_buffers=True):
            return _open(ref, name, "random", arch, model_args, num_classes)
    opened = _open(ref, name, weights, arch, model_args, num_classes)
    opened.module.eval()
    refuse_non_finite(opened)
    return opened


def _open(
    ref: str, name: str, weights: str, arch: str | None, args: dict[str, Any], classes: int | None
) -> OpenModel:
    path = Path(name)
    if weights not in ("pretrained", "random"):
        if not Path(weights).exists():
            raise RequestError(f"--weights {weights}: there is no such file or directory")
        if path.exists():
            raise RequestError(f"{ref} is a path already; give --weights with an architecture only")
        if Path(weights).is_file():
            return _file(ref, Path(weights), arch or name, args, classes)
        return _directory(ref, Path(weights), "pretrained", args, classes)
    if path.is_dir():
        return _directory(ref, path, weights, args, classes)
    if path.is_file():
        if path.suffix != ".safetensors" and arch not in OWN_NAMES:
            raise RequestError(
                f"{ref}: pela reads safetensors files and model directories only; a checkpoint of "
                f"{', '.join(OWN_NAMES)} needs --arch"
            )
        if not arch:
            raise RequestError(f"{ref}: a bare safetensors file needs --arch, a timm name")
        return _file(ref, path, arch, args, classes)
    if name in OWN_NAMES:
        if weights != "random":
            raise RequestError(f"{ref}: give its checkpoint with --weights FILE, or random")
        return _own(ref, name, None, args, classes)
    from pelacli.models.timm import adapter as timm_adapter

    if timm_adapter.is_model(name):
        return _timm_name(ref, name, weights, args, classes)
    if "/" in name:
        repo = name.removeprefix("hf-hub:").removeprefix("hf_hub:")
        if path.suffix == ".safetensors" or name.startswith((".", "/", "~")):
            raise RequestError(f"{ref}: there is no such file or directory")
        folder = hub.fetch(repo, weights=weights == "pretrained")
        return _directory(ref, folder, weights, args, classes, hub_id=repo)
    from pelacli.models.hf import adapter as hf_adapter

    if hf_adapter.is_type(name):
        if weights == "random":
            module = hf_adapter.build_random(name, args, classes)
            return describe(ref, module, "transformers", None, name, "random", None)
        raise RequestError(
            f"{ref}: is a family of transformers, not a checkpoint; give a hub id (owner/name), "
            "or --weights random for its default shape"
        )
    near = closest(name, [*ALIASES, *OWN_NAMES, *timm_adapter.names(), *hf_adapter.types()])
    hint = (
        f"did you mean {', '.join(near)}?" if near else "see `timm.list_models()`, or give a hub id"
    )
    raise RequestError(f"{ref}: unknown model; {hint}")


def _timm_name(
    ref: str, name: str, weights: str, args: dict[str, Any], classes: int | None
) -> OpenModel:
    from pelacli.models.timm import adapter as timm_adapter

    file, digest = None, None
    place = timm_adapter.on_the_hub(name)
    if place is not None and weights != "random":
        repo, file_name = place
        file = hub.fetch(repo, weights=True, file=file_name) / (file_name or "model.safetensors")
        digest = digest_file(file)
    module = timm_adapter.build(
        name, num_classes=classes, model_args=args, weights=weights, file=file
    )
    return describe(ref, module, "timm", None, name, weights, digest)


def _file(ref: str, file: Path, arch: str, args: dict[str, Any], classes: int | None) -> OpenModel:
    arch = resolve_alias(arch)
    if arch in OWN_NAMES:
        return _own(ref, arch, file, args, classes)
    from pelacli.models.timm import adapter as timm_adapter

    if not timm_adapter.is_model(arch):
        near = closest(arch, [*ALIASES, *timm_adapter.names()])
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise RequestError(f"--arch {arch}: timm has no such architecture{hint}")
    own_classes = _classes_of(_shapes(file), arch)
    module = timm_adapter.build(
        arch,
        num_classes=own_classes if classes is None else classes,
        model_args=args,
        weights="pretrained",
        file=file,
        file_classes=own_classes,
    )
    return describe(ref, module, "timm", None, arch, str(file), digest_file(file))


def _own(
    ref: str, name: str, file: Path | None, args: dict[str, Any], classes: int | None
) -> OpenModel:
    lib = OWN_NAMES[name]
    module = own(lib).build(name, model_args=args, num_classes=classes, weights=file)
    if file is None:
        return describe(ref, module, lib, None, name, "random", None)
    opened = describe(ref, module, lib, file.parent, name, str(file), digest_file(file))
    beside = [path for name in _BESIDE if (path := file.parent / name).is_file()]
    opened.carried = {path.name: path.read_bytes() for path in beside}
    return opened


def _directory(
    ref: str,
    folder: Path,
    weights: str,
    args: dict[str, Any],
    classes: int | None,
    hub_id: str | None = None,
) -> OpenModel:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise RequestError(f"{ref}: has no config.json, so it is no timm or transformers model")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise RequestError(f"{config_file}: not valid JSON ({error})") from None
    files = plain_weight_files(folder)
    for file in files if weights == "pretrained" else []:
        _shapes(file)  # a truncated file is found here, with its name
    digest = digest_files(files) if files and weights == "pretrained" else None
    asked = hub_id or str(folder)
    if isinstance(config, dict) and "pela_model" in config:
        lib = str(config["pela_model"])
        library(lib)
        random = weights == "random"
        module = own(lib).open_directory(folder, random=random, num_classes=classes)
        opened = describe(ref, module, lib, folder, asked, weights, digest)
        opened.carried = carried(folder)
        return opened
    if isinstance(config, dict) and "architecture" in config:
        from pelacli.models.timm import adapter as timm_adapter

        if weights == "pretrained" and not files:
            raise RequestError(f"{ref}: has no safetensors weights; use --weights random")
        module = timm_adapter.build(
            f"local-dir:{folder}", num_classes=classes, model_args=args, weights=weights
        )
        return describe(ref, module, "timm", None, asked, weights, digest)
    if isinstance(config, dict) and "model_type" in config:
        from pelacli.models.hf import adapter as hf_adapter

        module, fresh = hf_adapter.open_directory(
            folder, random=weights == "random", model_args=args, num_classes=classes
        )
        opened = describe(ref, module, "transformers", folder, asked, weights, digest)
        opened.carried = carried(folder)
        if fresh:
            warn(f"{ref}: the checkpoint lacks {', '.join(fresh[:4])}; randomly initialised")
        return opened
    raise RequestError(
        f"{config_file}: names neither a timm architecture nor a transformers model_type"
    )


# What belongs to a bare file of weights, of all that may lie beside it.
_BESIDE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def _classes_of(shapes: dict[str, tuple[int, ...]], arch: str) -> int | None:
    """Classes of the checkpoint's own head, so that a bare file needs no --set num_classes."""
    import timm

    cfg = timm.get_pretrained_cfg(arch)
    classifier = cfg.classifier if cfg is not None else None
    first = classifier[0] if isinstance(classifier, tuple | list) else classifier
    if not first:
        return None
    shape = shapes.get(f"{first}.weight")
    return shape[0] if shape else 0
