"""Weights & Biases: mirrors what runs record in local files."""
