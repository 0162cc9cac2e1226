"""Experiments of the literature, from scratch, by one call."""
