"""Load and save any module."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

from torch import nn

from pelacli.api import arguments
from pelacli.artefact import changes, into_module, loading, locating, roundtrip, saving
from pelacli.manifest.document import Manifest
from pelacli.models import heads, torch_module, wrapping
from pelacli.models.hf import stated_layers
from pelacli.models.opened import OpenModel
from pelacli.steps import outputs
from pelacli.steps import verify as steps_verify
from pelacli.steps.verify import Verified
from pelacli.system import devices

# Where a module that `load` gave, or `decompose` changed, keeps what `save` needs.
_KEPT = "_pela"


@arguments.suggesting
def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The model of an artefact, in eval mode.

    Args:
        path: an artefact; a run directory, which stands for its last step; or whatever else
            ``pela decompose`` takes as a model, dense.
        model: for an artefact of a class of your own, which only your code can build: a dense
            module of that class, built with the same arguments. The plan is applied to it and the
            weights are loaded strictly, in place, on its device. Leave it out for the models of
            timm and transformers.

    Returns:
        The module: ``model`` itself, or a new one on the CPU. Its weights have the precision of
        their file, of an artefact and of a dense model alike; ``.float()`` computes in float32.

    Raises:
        RequestError: there is no such model, a file of it is damaged, or it does not fit ``model``,
            which is as it was then.
        PelaError: a hub can't be reached.

    Example::

        >>> from torch import nn
        >>> class Net(nn.Sequential):
        ...     def __init__(self):
        ...         super().__init__(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))
        >>> net = Net()
        >>> plan = pelacli.decompose(net, ratio=0.5)
        >>> pelacli.save(net, "half")
        >>> pelacli.load("half", model=Net())[0].rank == net[0].rank
        True
    """
    at = arguments.path(path)
    if model is None:
        opened, manifest = loading.open(os.path.expanduser(path), as_stored=True)
    else:
        arguments.module(model)
        on_meta = any(parameter.is_meta for parameter in model.parameters())
        with nullcontext() if on_meta else devices.on_cpu(model):
            artefact = into_module.load_into(model, locating.locate(os.path.expanduser(path)) or at)
        opened, manifest = artefact.opened, artefact.manifest
    keep(opened, manifest)
    return opened.module


@arguments.suggesting
def save(model: nn.Module, path: str | Path) -> None:
    """Write a model as an artefact, as it is now, whole or not at all.

    It may have changed since it was loaded or factorised: another head, other classes, trained. A
    model of timm or transformers loads again by itself; one of another class into a module of that
    class (`load`).

    Args:
        path: a new directory, an empty one, or an artefact, which is replaced.

    Raises:
        RequestError: the path holds something else, a weight is not finite, or the model has a
            layer that its library would not build again; the message names it.
        PelaError: the disk refuses.

    Example::

        >>> model = timm.create_model("test_vit")
        >>> plan = pelacli.decompose(model, ratio=0.6)
        >>> pelacli.save(model, "smaller")
        >>> type(pelacli.load("smaller")).__name__
        'VisionTransformer'
    """
    at = arguments.path(path)
    arguments.module(model)
    saving.check_output(at)
    opened, before = kept(model)
    opened = opened or wrapping.wrap(model)
    roundtrip.check_merged(opened)
    with devices.on_cpu(model):
        manifest = changes.current(opened, before)
        if opened.library == torch_module.NAME:
            roundtrip.check_finite(opened)
            into_module.check_writable(opened)
        else:
            roundtrip.check_readable(opened, manifest)
        with outputs.writing(at):
            saving.save(opened, manifest, at)


@arguments.suggesting
def verify(path: str | Path) -> Verified:
    """Compare an artefact with what was written, file by file.

    Args:
        path: an artefact, a run directory, which stands for its last step, or the hub's id of an
            artefact.

    Returns:
        what is damaged (``damages``, each a ``file`` and ``what`` is wrong with it), and whether
        that is nothing (``whole``).

    Raises:
        RequestError: there is no artefact.
        PelaError: the hub can't be reached.

    Example::

        >>> model = timm.create_model("test_vit")
        >>> plan = pelacli.decompose(model, ratio=0.6)
        >>> pelacli.save(model, "smaller")
        >>> pelacli.verify("smaller").whole
        True
    """
    arguments.path(path)
    located = locating.whole(os.path.expanduser(path))
    return steps_verify.verify(located.path, located.name)


def keep(opened: OpenModel, manifest: Manifest | None) -> None:
    """Let the module remember what `save` will need, and its configuration which layers are
    low-rank."""
    stated_layers.state(opened.module)
    setattr(opened.module, _KEPT, (opened, manifest))


def kept(model: nn.Module) -> tuple[OpenModel | None, Manifest | None]:
    """What is known of a module that `load` gave or `decompose` changed, its config, inputs and
    head as they are now; (None, None) of any other module."""
    opened, manifest = getattr(model, _KEPT, (None, None))
    return None if opened is None else heads.refreshed(opened), manifest
