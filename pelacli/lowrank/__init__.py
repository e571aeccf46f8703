"""The low-rank layer and the model around it: find layers, replace them, watch their calls.

Which rank a layer gets is decided in `pelacli.ranks`, its factors in `pelacli.factorize`.
"""
