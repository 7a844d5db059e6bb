"""Running one experiment: its stages, from the baseline to the evaluation, and how losses rank its checkpoints."""
