"""Rows and tables made from manifests, sweeps and training curves.

No torch, and no printing: the command line prints.
"""
