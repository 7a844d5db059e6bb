"""What the larger subcommands of the command line do."""
