"""The recipe: what its sections and keys are, how it is read, and what identifies a step.

No torch, and nothing about how a step does its work.
"""
