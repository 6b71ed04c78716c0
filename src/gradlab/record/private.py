"""What no file of a run may hold: the home folder's path, and secrets from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
"""Environment variables whose names hold one of these are secrets."""
SHORTEST = 8
"""A value of fewer characters is no secret: it could be part of any word."""


def is_secret(name: str) -> bool:
    """Whether an environment variable of that name holds a secret."""
    return SECRET.search(name) is not None


def scrub(value: Any) -> Any:
    """``value``, a nest of dicts and lists, with every text in it as :func:`scrub_text` has it."""
    if isinstance(value, str):
        return scrub_text(value)
    if isinstance(value, Mapping):
        return {scrub(key): scrub(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [scrub(item) for item in value]
    return value


def scrub_text(text: str) -> str:
    """``text`` with ``~`` for the home folder and ``<NAME>`` for the value of a secret NAME."""
    for name, value in os.environ.items():
        if is_secret(name) and len(value) >= SHORTEST:
            text = text.replace(value, f"<{name}>")
    home = str(Path.home())
    if len(home) > 1 and home in text:
        text = re.sub(re.escape(home) + r"(?![\w.-])", "~", text)
    return text


def scrub_file(path: Path) -> None:
    """The same for a text file, if there is anything to do."""
    text = path.read_text(encoding="utf-8")
    if (clean := scrub_text(text)) != text:
        path.write_text(clean, encoding="utf-8")
