"""Packages that only some work needs: the extras of pyproject.toml."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from pelacli.errors import PackageError
from pelacli.messages import one_line

# Package → the extra that brings it.
EXTRAS = {
    "datasets": "datasets",
    "pycocotools": "detection",
    "webdataset": "webdataset",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
}


def require(package: str, needed_by: str) -> ModuleType:
    """Import a package of an extra.

    Args:
        needed_by: begins the message: what was asked for.

    Raises:
        PackageError: it is not installed, or can't be loaded, with the command that installs it.
    """
    try:
        return import_module(package)
    except Exception as error:  # whatever a package does that was built for other ones
        install = f"'pelacli[{EXTRAS[package]}]'"
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise PackageError(f"{needed_by}: needs {package}: pip install {install}") from None
        raise PackageError(
            f"{needed_by}: {package} is installed and can't be loaded ({type(error).__name__}: "
            f"{one_line(error, 160)}): pip install --force-reinstall {install}"
        ) from error


def refuse_missing(packages: Sequence[str], needed_by: str) -> None:
    """Look whether packages of one extra are installed, without loading them, which takes seconds.

    Args:
        needed_by: begins the message: what was asked for.

    Raises:
        PackageError: naming those that are not, with the command that installs them.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise PackageError(
            f"{needed_by}: needs {' and '.join(missing)}: "
            f"pip install 'pelacli[{EXTRAS[missing[0]]}]'"
        )
