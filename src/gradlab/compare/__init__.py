"""Run directories in, tables and pictures of them together out."""

MOST_ARRAYS = 200
"""Runs whose arrays are read unasked: some 40 ms each."""
