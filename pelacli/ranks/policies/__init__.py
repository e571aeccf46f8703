"""One file for each policy, which decides the rank of each layer. A policy is named as its file.

What a policy's file must define is in `pelacli.ranks.policies.base.Policy`; nothing else needs to
know of it.
"""
