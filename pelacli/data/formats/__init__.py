"""Readers of the data formats that tasks use: one file per format, from paths to raw samples.

Nothing here knows models. A reader checks what it reads and names the file and entry of a mistake.
"""
