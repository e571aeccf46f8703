"""The command line: parse, call one step, print. Nothing heavy is imported until a command runs."""
