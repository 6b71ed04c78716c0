"""The tests; their rooms mirror those of ``src/gradlab``."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The project's folder."""
