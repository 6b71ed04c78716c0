"""Errors of the composition in words: which key, what was given, what is allowed, what to try."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import accumulate, takewhile
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gradlab.errors import BadInput, first_line, nearest
from gradlab.launch.conf_files import config_folder, config_folders, groups_of, options_of
from gradlab.launch.extras import missing_extra

FLAGS = ("cfg", "config-dir", "config-name", "config-path", "experimental-rerun", "info", "package")
"""Hydra's flags that take a value; everything else is an override."""
WRONG_KEY = re.compile(r"Could not override '([^'@]+)[^']*'")
PLUS = re.compile(r"Multiple values for (\w+)\.")
SWEEP = re.compile(r"(?:Ambiguous value for argument|Sweep parameters) '([^'=]+)=")
LOCATED = re.compile(r"In '([^']+)': ")
FLAG_AT_FAULT = (
    (re.compile(r"Additional config directory '(.*)' not found"), "--config-dir"),
    (re.compile(r"primary config '(.*?)'"), "--config-name"),
    (re.compile(r"Primary config (?:module|directory) '?(.*?)'? not found"), "--config-path"),
    (re.compile(r"The (--resolve) flag can only"), "command line"),
)
"""What Hydra says of a flag, with its value -> the flag."""
AT_FAULT = (
    re.compile(r"Error merging override \+*([^=\s]+)="),
    re.compile(r"Could not delete (?:from config\. )?(?:The value of )?'([^']+)'"),
    re.compile(r"An item is already at '([^']+)'"),
    re.compile(r"Override [+~]*([^@=\s]+)[@=]"),
    re.compile(r"not supported: '[+~]*([^@=\s]+)[@=]"),
    re.compile(r"key_or_group='([^']+)'"),
    re.compile(r"^(hydra\.searchpath) must"),
    re.compile(r"full_key: (\S+)"),
)
"""What Hydra says of a key."""
DIRS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
"""Where a run directory comes from."""
SHOW_ALL = "python -m gradlab --cfg job shows every key, python -m gradlab --help every option"


def check_flags(arguments: Iterable[str]) -> None:
    """Refuse an override that was written like a flag, ``--key=value``, with :class:`BadInput`."""
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if equals and name.startswith("--") and not any(f"--{f}".startswith(name) for f in FLAGS):
            allowed = "key=value, without dashes"
            raise BadInput("command line", argument, allowed, argument.lstrip("-"))


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """An error of the composition, as key, value, what is allowed and what to try.

    Args:
      error: what Hydra raised before the first job.
      arguments: the command line after the program's name.
    """
    text = str(error)
    if isinstance(error, OverrideParseException):
        return str(_bad_syntax(error.override, text))
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        path, options = str(error.missing_cfg_file), error.options
        if refusal := missing_extra(path, lambda group: _given(arguments, group)):
            return str(refusal)
        return str(_bad_option(path, _located(text), arguments, options))
    if found := WRONG_KEY.search(text):
        return str(_bad_key(found[1], _located(text), arguments))
    if found := SWEEP.search(text):
        sweep = f"python -m gradlab -m {' '.join(arguments)}"
        return str(BadInput(found[1], _given(arguments, found[1]), "one value without -m", sweep))
    if found := PLUS.search(text):
        given = _given(arguments, found[1])
        return str(BadInput(found[1], given, "an option, without the +", f"{found[1]}={given}"))
    if "Config group override must be" in text or "Could not override ''" in text:
        for group in groups_of(arguments):
            given = _given(arguments, group)
            if given and not re.search(r"[^\W\d]", given.replace("null", "")):
                return str(_bad_option(f"{group}/{given}", "", arguments))
        given = next((a for a in arguments if a.startswith("=")), " ".join(arguments))
        return str(_bad_syntax(given, "no key before the ="))
    if refusal := _blamed(error, text, arguments):
        return str(refusal)
    if isinstance(error, OSError):
        key = "hydra.sweep.dir" if {"-m", "--multirun"} & set(arguments) else "hydra.run.dir"
        given = _given(arguments, key) or str(error.filename)
        allowed = f"a folder that can be made; the run directory cannot be made: {why(error)}"
        hint = f"{key}=FOLDER, where there is none yet and one can be made"
        return str(BadInput(key, given, allowed, hint))
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n  ".join(["the configuration cannot be composed", *lines[:12]])


def why(error: OSError) -> str:
    """What the system said, and of which path."""
    if error.filename is None:
        return error.strerror or str(error)
    return f"{error.strerror}: {os.path.abspath(error.filename)}"


def _blamed(error: Exception, text: str, arguments: Sequence[str]) -> BadInput | None:
    """For an error of which Hydra says no more than the key, the flag, or not even that."""
    reason = " ".join(text.split())[:400]
    if isinstance(cause := error.__cause__, OmegaConfBaseException):
        reason += f": {first_line(cause)}"
    for pattern, flag in FLAG_AT_FAULT:
        if found := pattern.search(text):
            return BadInput(flag, found[1], f"what Hydra takes there; it says: {reason}")
    long = next((a for a in arguments if len(a) > 255), "")
    too_long = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
    if long and (too_long or "for integer string conversion" in text):
        key, _, given = long.rpartition("=")
        return BadInput(key or "command line", given, "something shorter")
    key = next((found[1] for pattern in AT_FAULT if (found := pattern.search(text))), "")
    if not key and not isinstance(error, OSError):
        for group in groups_of(arguments):
            if _is_no_option(group, arguments):
                known = ", ".join(options_of(group, arguments))
                return BadInput(group, _given(arguments, group), known)
    if not key:
        if "\n" in text.strip() or isinstance(error, OSError):
            return None  # a file at fault, which is named
        key, given = "command line", " ".join(arguments)
        return BadInput(key, given, f"what can be composed; Hydra says: {reason}")
    given = _given(arguments, key) or next((a for a in arguments if key in a), "")
    return BadInput(key, given, f"what can be composed; Hydra says: {reason}")


def _is_no_option(group: str, arguments: Sequence[str]) -> bool:
    """Whether the command line asks for something that is no option of a group."""
    given = _given(arguments, group).strip("[]").split(",")
    return given != [""] and not {*given} <= {*options_of(group, arguments)}


def _bad_syntax(override: str, text: str) -> BadInput:
    allowed = "key=value without spaces; for a list quotes too: 'key=[1,2]'"
    if "=" not in override:
        hint = f"{override}=VALUE"
    elif " " in override:
        hint = override.replace(" ", "")
    else:
        reason = next(line for line in text.splitlines() if "override" not in line)
        allowed, hint = f"{allowed} ({reason})", SHOW_ALL
    return BadInput("command line", override, allowed, hint)


def _bad_option(
    path: str, where: str, arguments: Sequence[str], options: Sequence[str] | None = None
) -> BadInput:
    """For a group that has no such option."""
    group, _, name = path.rpartition("/")
    options = options or options_of(group, arguments)
    if not options:
        groups = groups_of(arguments)
        hint = ", ".join(nearest(group, groups))
        return BadInput(group + where, name, f"a group that exists: {', '.join(groups)}", hint)
    hint = ", ".join(f"{group}={option}" for option in nearest(name, options))
    return BadInput(group + where, name, ", ".join(options), hint)


def _bad_key(key: str, where: str, arguments: Sequence[str]) -> BadInput:
    """For a key that is not in the configuration."""
    given = _given(arguments, key)
    if key.partition(".")[0] == "hydra":
        return BadInput(key, given, "a key of Hydra", "python -m gradlab --cfg hydra shows them")
    known = _known_keys(arguments, key)
    parent = key.rpartition(".")[0]
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    shown = siblings or [k for k in known if "." not in k]
    close = nearest(key, siblings) or nearest(key, known)
    value = "" if not given or where else f"={given}"
    hint = ", ".join(f"{k}{value}" for k in close) or SHOW_ALL
    return BadInput(key + where, given, f"a key that exists: {', '.join(shown)}", hint)


def _located(text: str) -> str:
    """In which file the fault is, unless it is on the command line."""
    found = LOCATED.search(text)
    if found is None or found[1] == "config" or found[1].startswith("hydra/"):
        return ""
    return f" (in {found[1]}.yaml)"


def _given(arguments: Iterable[str], key: str) -> str:
    """What the command line says of ``key``."""
    start = re.compile(rf"[+~]*{re.escape(key)}(@[^=]*)?=")
    return next((a[m.end() :] for a in arguments if (m := start.match(a))), "")


def _known_keys(arguments: Sequence[str], wrong: str) -> list[str]:
    """Every key and group that could have been meant, with the chosen options applied."""
    from hydra import compose, initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from gradlab.record.keys import flat

    groups = groups_of(arguments)
    overrides: list[Override] = []
    for argument in arguments:
        with suppress(HydraException):
            overrides += OverridesParser.create().parse_overrides([argument])
    chosen = [
        str(override.input_line)
        for override in overrides
        if override.key_or_group in groups and not override.is_sweep_override()
    ]
    extra = [f"file://{folder}" for folder in config_folders(arguments)[1:]]
    with initialize_config_dir(config_folder(), version_base="1.3"):
        try:
            cfg = compose("config", overrides=[f"hydra.searchpath=[{','.join(extra)}]", *chosen])
        except (HydraException, OmegaConfBaseException, ValueError):
            cfg = compose("config")
    found: Any = OmegaConf.to_container(cfg)
    named = (
        takewhile(lambda part: not part.startswith("_"), key.split(".")) for key in flat(found)
    )
    keys = {key for parts in named for key in accumulate(parts, "{}.{}".format)}
    return sorted({*keys, *groups} - {"hydra"})
