"""Surrogates that see the expected parts of the metric: expected counts, overlaps and hits, one module per kind."""
