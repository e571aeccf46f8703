"""Packages that only some work needs: the extras of pyproject.toml."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from pelacli.errors import PackageError

# Package → the extra that brings it.
EXTRAS = {"datasets": "datasets", "pycocotools": "detection", "webdataset": "webdataset"}


def require(package: str, needed_by: str) -> ModuleType:
    """Import a package of an extra.

    Args:
        needed_by: begins the message: what was asked for.

    Raises:
        PackageError: it is not installed, with the command that installs it.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # it is there, and lacks something itself
            raise
        install = f"pip install 'pelacli[{EXTRAS[package]}]'"
        raise PackageError(f"{needed_by}: needs {package}: {install}") from None
