"""Figures, drawn from the written tables alone."""
