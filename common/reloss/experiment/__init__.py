"""Experiments: typed configs, the tasks that offer them, records, tracking, and the stages of a run.

Import the submodule that is needed; those that describe experiments import no torch.
"""
