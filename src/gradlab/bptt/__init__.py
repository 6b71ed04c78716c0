"""Backpropagation through time: one direction, a stack, long products, a close look."""
