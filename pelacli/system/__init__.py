"""The machine below pela: files, processes, memory, threads, devices.

Nothing here knows models or recipes, and importing it loads no torch.
"""
