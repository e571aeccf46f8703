"""The rank engine: spectra and a budget in, a plan out.

Numbers only, no torch and no recipe. Spectra come from `pelacli.factorize.spectra`, and
`pelacli.factorize.engine` puts a plan into a model.
"""
