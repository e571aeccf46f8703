"""The Python interface: plan and decompose any module; save, load, export and import models.

What of it is public stands in ``pelacli.__all__``.
"""

from pelacli.api.exporting import export
from pelacli.api.factorising import decompose, plan
from pelacli.api.files import load, save, verify
from pelacli.api.importing import import_checkpoint

__all__ = ["decompose", "export", "import_checkpoint", "load", "plan", "save", "verify"]
