"""Experiments: typed configs and the tasks that offer them, the description of a run, and its record.

Import the submodule you need; those that describe experiments and runs import no torch.
"""
