"""Committed records of runs, and the tables rendered from them."""
