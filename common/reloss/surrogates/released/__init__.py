"""The networks of the authors' release, with its parameter names, so that its weights load.

They are kept for parity, with their known flaws, which each module names. A surrogate uses them where its options ask
for the release's computation.
"""
