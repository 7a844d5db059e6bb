"""The subcommands of `reloss`: `run_commands` and `result_commands` declare their arguments, the others do the work."""
