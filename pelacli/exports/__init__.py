"""A low-rank model in the forms of other runtimes: one file per target, listed in `targets`."""
