"""Open any model: the only package that knows timm and transformers by name.

A family that one of them can build needs nothing here. A model that neither has is one adapter
(`adapters.OwnAdapter`) and one line in the table of `libraries`.
"""
