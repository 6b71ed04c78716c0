"""Weights & Biases: what it is sent, and how."""
