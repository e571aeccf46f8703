"""What ran: pela, Python and the libraries that are installed."""

from __future__ import annotations

import platform
from importlib import metadata

from pelacli.version import __version__

_LIBRARIES = ("torch", "timm", "transformers", "safetensors", "accelerate")


def versions() -> dict[str, str]:
    """What ran: pela, Python and the libraries that are installed, none of them imported."""
    found = {"python": platform.python_version(), "pelacli": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
