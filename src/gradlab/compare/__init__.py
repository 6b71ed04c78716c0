"""Run directories in, tables and pictures of them together out."""
