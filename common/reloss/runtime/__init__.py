"""What any long-running program needs: errors, files, checkpoints, locks, signals, progress, processes, downloads."""
