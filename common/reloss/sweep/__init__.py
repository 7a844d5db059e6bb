"""Running many experiments: which runs a table needs, and how they are started here or on a Slurm cluster."""
