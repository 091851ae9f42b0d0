"""Selectors: which rows of a pool stand for all of it. One algorithm, one file."""
