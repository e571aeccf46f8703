"""From weights and calibration samples to moments, spectra and factors.

The numerical core. It knows layers, and no model library, recipe or file.
"""
