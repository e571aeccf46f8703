"""The directory that every step reads and writes: describe, save, load, and its model card.

The manifest alone, without weights, is in `pelacli.manifest`.
"""
