"""Training: one loop on accelerate, its losses, optimizer, checkpoints and journal.

What is trained on is a task's affair, and what becomes of the weights a step's.
"""
