"""What a long-running program needs, whatever it computes: errors, files, locks, signals, progress, processes."""
