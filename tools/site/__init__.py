"""The site of the documentation; see `hooks`."""
