"""The tasks: each adapts one framework to the core of `reloss`. Imported as `reloss_tasks`."""
