"""One file for each budget, a way to say how small a model is to become. A budget is named as its
file, and so is its key in a recipe.

What a budget's file must define is in `pelacli.ranks.budgets.base.Kind`; nothing else needs to know
of it.
"""
