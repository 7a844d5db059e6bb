"""One package per task, imported as `reloss_tasks`. Each adapts one framework to the core of `reloss`."""
