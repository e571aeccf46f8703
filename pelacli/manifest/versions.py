"""The versions of what ran."""

from __future__ import annotations

import platform
from importlib import metadata

from pelacli.version import __version__

_LIBRARIES = ("torch", "timm", "transformers", "safetensors", "accelerate")


def versions() -> dict[str, str]:
    """Name → version of Python, pela and the libraries that are installed. None is imported."""
    installed = {"python": platform.python_version(), "pelacli": __version__}
    for name in _LIBRARIES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
