"""The site of these pages: ``pip install ".[docs]"``, then ``sphinx-build -W docs site``."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent)]

from pelacli.version import __version__  # noqa: E402

project = "pela"
copyright = "the authors of pela"
version = release = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "generated_reference",
    "mathml",
]
html_theme = "furo"
html_title = "pela"
html_math_renderer = "mathml"
html_copy_source = False
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "none"  # the docstrings say it in words
napoleon_use_ivar = True
