"""Experiments: one run, or a grid of points that survives being killed."""
