"""The commands' work, one file per step, each reading like the picture of the data flow.

A step calls the packages below it in order. What it prints is the command line's affair.
"""
