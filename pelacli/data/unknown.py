"""The refusal of a dataset that is nowhere."""

from __future__ import annotations

from pathlib import Path

from pelacli.errors import RequestError
from pelacli.messages import closest


def unknown_dataset(spec: str) -> RequestError:
    """The error for a dataset that is nowhere: a path is missing, of a name the forms are said."""
    if "/" in spec or spec.startswith((".", "~")) or Path(spec).suffix:
        return RequestError(f"{spec}: no such folder or file")
    near = " (did you mean 'digits'?)" if closest(spec, ["digits"]) else ""
    return RequestError(
        f"unknown dataset {spec!r}{near}: give 'digits', a folder, a text file, or hfds/NAME, "
        "torch/NAME, wds/DIRECTORY"
    )
