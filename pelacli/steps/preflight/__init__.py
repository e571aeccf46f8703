"""Look before a recipe runs: what its steps will need is there, and goes together.

The model is built without weights and goes through the steps as they would change it; datasets are
opened, and one sample of each is read. Nothing is computed, nothing large is fetched, and nothing
is written. `check` begins.
"""
