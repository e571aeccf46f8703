"""The Python interface: plan and decompose any module, save and load it.

What of it is public stands in ``pelacli.__all__``.
"""

from pelacli.api.factorising import decompose, plan
from pelacli.api.files import load, save, verify

__all__ = ["decompose", "load", "plan", "save", "verify"]
