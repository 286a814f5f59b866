"""Masks and a cache make a fetch plan: what every token reads, from where, in which pieces.

There is no time in here.
"""
