"""The Python interface: plan and decompose any module, save, load and export it.

What of it is public stands in ``pelacli.__all__``.
"""

from pelacli.api.exporting import export
from pelacli.api.factorising import decompose, plan
from pelacli.api.files import load, save, verify

__all__ = ["decompose", "export", "load", "plan", "save", "verify"]
