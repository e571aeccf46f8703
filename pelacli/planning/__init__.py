"""Plans by the settings of a recipe's [decompose]: of a model, of stored spectra, of many ratios.

No torch and no weights. How ranks are chosen is decided in `pelacli.ranks.planner`.
"""
