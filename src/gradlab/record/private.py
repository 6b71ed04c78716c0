"""What no file of a run may hold: the home folder's path, and secrets from the environment."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

_SECRET = re.compile(
    r"SECRET(?!ARY)|PASSW(?:OR)?D|PSWD|PASSPHRASE|PASSCODE|CREDENTIAL|MNEMONIC|SEED_PHRASE"
    r"|(?<![A-Z])CREDS?(?![A-Z])|CONN(?:ECTION)?_?STR(?:ING)?(?![A-Z])"
    r"|AUTHORIZATION|(?:BASIC|O)AUTH(?![A-Z])|AUTH_(?:HEADER|CONFIG)|(?<![A-Z])DB_PW$"
    r"|(?:KEY|TOKEN)S?(?![A-Z])"  # at the end of a word: no KEYBOARD, no TOKENIZERS
    r"|(?<!COM)(?<!BY)(?<!OVER)PASS(?![A-Z])"
    r"|(?<![A-Z])(?:COOKIES?|JWT|BEARER|WEBHOOK)(?![A-Z])"
    r"|(?<![A-Z])(?:AUTH|PAT|SAS|DSN)$"
    r"|(?<!^OLD)(?<!^)PWD$"
    r"|(?<![A-Z])(?<!^DESKTOP_)SESSION$",
    re.IGNORECASE,
)
_PLACE = re.compile(r"_(?:FILE|DIR|PATH|SOCK)$|PUBLIC_?KEY$", re.IGNORECASE)
"""A variable with such a name says where something is, or is no secret by its nature."""
SHORTEST = 8
"""A value of fewer characters is no secret: it could be part of any word."""
_WORDS = """
absolute accuracy adjoint_slope checkpoint checkpoints compiling constant cross_entropy disabled
diverged experiment exponential feedforward finished hydra.job hydra.run hydra.sweep identity
interrupted learning_rate multirun objective optimizer overrides population reference regularizer
sequence standard steps_per_second training validation
"""
"""Words that records are made of; a secret that is one of them cannot be told from it."""
_URL = re.compile(
    r"""(?P<head>[a-z][a-z0-9+.-]*://[^\s/:@'"${}]*):(?!<\w+>@)(?!\$\{)[^\s/]+@""", re.IGNORECASE
)
"""A URL with a password, which is not the name of a secret or a reference already."""
_USER = re.compile(r"(https?://)(?!\*)[^\s/:@'\"<>${}]{16,}@", re.IGNORECASE)
"""A token as the name of a user."""
_ASKED = re.compile(
    r"([?&](?:password|passwd|token|access_token|api_?key|secret|sig)=)[^\s&'\"<>*${}]+",
    re.IGNORECASE,
)
"""A secret among the questions of a URL."""
HIDDEN = "***"
"""What is shown of the password in a URL."""


@functools.cache
def is_secret(name: str) -> bool:
    """Whether the value of an environment variable of this name is a secret."""
    return bool(_SECRET.search(name)) and not _PLACE.search(name)


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
    """``text`` without secrets, as :func:`hide` has it, and with ``~`` for the home folder."""
    text = hide(text)
    home = str(Path.home())
    if len(home) > 1 and home in text:
        text = re.sub(re.escape(home) + r"(?![\w.-])", "~", text)
    return text


def hide(text: str) -> str:
    """``text`` with ``<NAME>`` for the value of a secret NAME, and no password in a URL.

    A value is found as it is, and as Python, JSON, a shell, Hydra or a URL would write it.
    """
    if len(text) < SHORTEST:
        return text
    # W&B's thread sets a variable of its own now and then: what is gone meanwhile is no secret.
    there = [(name, os.environ.get(name, "")) for name in list(os.environ)]
    known = tuple(
        (name, value)
        for name, value in there
        if len(value) >= SHORTEST and (is_secret(name) or "://" in value)
    )
    if known:
        pattern, names = _forms(known)
        if pattern is not None:
            text = pattern.sub(lambda found: names[found[0]], text)
    if "://" in text:
        text = _URL.sub(rf"\g<head>:{HIDDEN}@", text)
        text = _USER.sub(rf"\g<1>{HIDDEN}@", text)
        text = _ASKED.sub(rf"\g<1>{HIDDEN}", text)
    return text


@functools.lru_cache(maxsize=4)
def _forms(known: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str] | None, dict[str, str]]:
    """What finds every form of some variables' secrets, and what to show for each."""
    shown: dict[str, str] = {}
    for name, value in known:
        if not is_secret(name):
            found = _URL.search(value)
            password = found[0][found.end("head") - found.start() + 1 : -1] if found else ""
            shown |= dict.fromkeys(_written(password), HIDDEN)
        elif not _is_ordinary(value):
            shown |= dict.fromkeys(_written(value), f"<{name}>")
    shown = {
        form: word
        for form, word in shown.items()
        if len(form.strip()) >= SHORTEST and not _is_ordinary(form)
    }
    longest_first = sorted(shown, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if shown else None, shown


def _written(value: str) -> set[str]:
    """The ways in which a text is written, whole or a line of it."""
    forms = set()
    for text in {value, value.strip(), *value.splitlines()}:
        forms |= {text, shlex.quote(f" {text}")[2:-1], repr(text)[1:-1], json.dumps(text)[1:-1]}
        forms |= {json.dumps(text, ensure_ascii=False)[1:-1]}
        forms |= {text.replace("\\", "\\\\").replace(mark, f"\\{mark}") for mark in "'\""}
        forms |= {quote(text, ""), quote(text), quote_plus(text)}
    return forms


def _is_ordinary(value: str) -> bool:
    """Whether it is a word of records, a number as of MAX_TOKENS, or the path of what is there."""
    is_path = value.startswith("/") and "\0" not in value and os.path.exists(value)
    is_number = value.isdecimal() and len(value) <= 12
    return value in _WORDS.split() or is_number or is_path
