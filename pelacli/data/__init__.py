"""Datasets: where samples come from, what a sample is, and how samples become batches.

What a task makes of its samples is in `pelacli.tasks.registry`.
"""
