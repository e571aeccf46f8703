"""Plans from a recipe's [decompose] section: of one model, of stored spectra, of many budgets.

No torch and no weights. How ranks are chosen is `pelacli.ranks.planner`' matter.
"""
