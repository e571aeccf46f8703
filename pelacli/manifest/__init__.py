"""The record of an artefact (pela.json), digests of its files, and where a run puts its artefacts.

No torch: reading and writing weights is `pelacli.artefact.saving`'s work.
"""
