"""Statements checked against recorded runs; ``experiments/`` holds one folder for each question."""
