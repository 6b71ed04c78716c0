"""Character-level text (Graves 2013; Karpathy, Johnson & Fei-Fei 2016 read source code so)."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.errors import BadInput
from gradlab.tasks.base import Baseline, Batch, Divided, Split, draw, settle, whole_number

SUFFIXES = (".md", ".py", ".txt")
"""The endings of the files that are read from a folder, in lower or upper case."""
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
"""Folders of the standard library that are not read."""


@dataclass(frozen=True)
class Text(Divided):
    """Predict the next character of a text.

    The text is read from ``path`` in order and cut at ``max_characters``: a file of any ending,
    or a folder, of which every .md, .py and .txt file is read, the files of a folder first and
    then its subfolders, each sorted by name, hidden folders left out. Without ``path`` it is the
    source code of the standard library of the Python that runs (no tests, no installed
    packages), which needs no download but differs between versions of Python.

    The first part of the text is for training, the next for validation, the last for test. The
    symbols are the ``vocabulary`` most frequent characters of the training part and one more,
    the last, for every other character. Training reads windows from random starts; validation
    and test read fixed, evenly spaced windows that do not overlap.

    Args:
      length: ``T`` in characters read.
      predict: ``"every"`` asks for the next character at every step, all weighing ``1/T``;
        ``"last"`` only after the last step, so that the whole gradient comes from there.
      path: a UTF-8 file or a folder, or None for the standard library.
      max_characters: characters read at most, at least 1.
      vocabulary: characters that get a symbol of their own at most, at least 1.
      val_fraction: share of the text held out for validation, in (0, 1).
      test_fraction: share of the text held out for test, in (0, 1).
      held_out_examples: windows in each of validation and test at most, at least 1.

    Attributes:
      alphabet: the characters that have a symbol; ``alphabet[i]`` is symbol ``i``, the most
        frequent first.
      symbols: ``len(alphabet) + 1``, and so is ``outputs``.

    Raises:
      BadInput: if a field is out of its range; if the file or folder is missing, cannot be read,
        is empty or is not UTF-8 (``task.path``); or if a split is too short for one window
        (``task.length``).
    """

    length: int = 100
    predict: Literal["every", "last"] = "every"
    path: str | None = None
    max_characters: int = 1_000_000
    vocabulary: int = 96
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    held_out_examples: int = 500
    alphabet: str = field(init=False, repr=False, compare=False)
    symbols: int = field(init=False, repr=False, compare=False)
    outputs: int = field(init=False, repr=False, compare=False)
    data: jax.Array = field(init=False, repr=False, compare=False)
    _splits: dict[str, np.ndarray] = field(init=False, repr=False, compare=False)

    loss = "cross_entropy"

    def __post_init__(self) -> None:
        whole_number("task.length", self.length, 1)
        if self.predict not in ("every", "last"):
            raise BadInput("task.predict", self.predict, "every or last")
        whole_number("task.max_characters", self.max_characters, 1)
        whole_number("task.vocabulary", self.vocabulary, 1)
        self.check_fractions()
        whole_number("task.held_out_examples", self.held_out_examples, 1)

        text = _read(self.path, self.max_characters)
        sizes = self.sizes(len(text))
        shortest = min(sizes, key=lambda name: sizes[name])
        if sizes[shortest] < 2:
            raise BadInput(
                "task.path",
                self.path,
                f"a text of which each split gets at least 2 characters; of the {len(text)} read "
                f"(task.max_characters={self.max_characters}), {shortest} gets {sizes[shortest]}",
                "a longer text, or a larger fraction for the split that came out short",
            )
        if self.length > sizes[shortest] - 1:
            raise BadInput(
                "task.length",
                self.length,
                f"at most {sizes[shortest] - 1} with this text: of its {len(text)} characters "
                f"{shortest} gets {sizes[shortest]}, and a window needs one more to predict",
                f"a longer text, a larger task.max_characters (now {self.max_characters}), "
                "or other fractions",
            )
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        borders = np.cumsum([sizes["train"], sizes["val"]])
        parts = dict(zip(sizes, np.split(codes, borders), strict=True))
        found, counts = np.unique(parts["train"], return_counts=True)  # ascending by code point
        kept = found[np.argsort(-counts, kind="stable")][: self.vocabulary]
        symbols = len(kept) + 1
        settle(self, alphabet="".join(map(chr, kept)), symbols=symbols, outputs=symbols)
        splits = {name: self._encode(part) for name, part in parts.items()}
        settle(self, _splits=splits, data=jnp.asarray(splits["train"]))

    @property
    def readout(self) -> Literal["every", "last"]:  # type: ignore[override]
        """Where the network is read: the ``predict`` it was built with."""
        return self.predict

    def encode(self, text: str) -> np.ndarray:
        """The symbols ``(len(text),)`` of the characters of ``text``."""
        return self._encode(np.frombuffer(text.encode("utf-32-le"), np.uint32))

    def decode(self, symbols: np.ndarray) -> str:
        """The characters of ``symbols (N,)``; the symbol for all others gives U+FFFD."""
        table = self.alphabet + "\ufffd"
        return "".join(table[symbol] for symbol in np.asarray(symbols))

    def sample(self, data: jax.Array, key: jax.Array, batch: int) -> Batch:
        """See :meth:`Divided.sample`; windows from random starts of the training text.

        Inputs are ``(T, B)`` int32; targets ``(T, B)`` int32 with weights ``(T, B)`` of ``1/T``
        for ``predict="every"``, and ``(B,)`` int32 without weights for ``"last"``.

        Args:
          data: the symbols of the training text, ``(N,)`` unsigned integers.
          key: a JAX random key.
          batch: ``B``.
        """
        starts = data.shape[0] - self.length
        return self._windows(data, draw(key, batch, starts))

    def held_out(self, split: Literal["val", "test"]) -> Batch:
        """See :meth:`Divided.held_out`; evenly spaced windows that share no character."""
        part = self._splits[split]
        count = min(self.held_out_examples, len(part) // (self.length + 1))
        # spacing >= T + 1 before rounding down, so the rounded starts keep that distance too
        starts = np.linspace(0, len(part) - self.length - 1, count).astype(np.int32)
        return jax.tree.map(jnp.asarray, self._windows(part, starts))

    def baseline(self, split: Split) -> Baseline:
        """Measured on the whole text of ``split``: its own character frequencies as the answer.

        The loss is their entropy in nats, the lowest that one answer for every step can reach on
        that text; the accuracy is the share of the most frequent symbol.
        """
        counts = np.bincount(self._splits[split], minlength=self.symbols)
        share = counts[counts > 0] / counts.sum()
        return Baseline(
            "the character frequencies of the split itself",
            float(-(share * np.log(share)).sum()),
            float(share.max()),
        )

    def _encode(self, codes: np.ndarray) -> np.ndarray:
        """Symbols ``(N,)`` of Unicode code points ``(N,)``, in the narrowest unsigned integers."""
        other = len(self.alphabet)
        table = np.full(0x110000, other, np.min_scalar_type(other))
        table[[ord(character) for character in self.alphabet]] = np.arange(other)
        return table[codes]

    def _windows(self, text: Any, start: Any) -> Batch:
        """``length`` symbols of ``text`` from each of ``start (B,)`` on, and what comes next."""
        steps = np.arange(self.length + 1, dtype=np.int32)[:, None]
        window = text[start[None] + steps].astype(np.int32)
        if self.predict == "last":
            return Batch(window[:-1], window[-1])
        weights = jnp.full((self.length, start.shape[0]), 1 / self.length)
        return Batch(window[:-1], window[1:], weights)


def _read(path: str | None, limit: int) -> str:
    """The first ``limit`` characters of the file, of the folder, or of the standard library."""
    root = Path(os.__file__).parent if path is None else Path(os.path.expanduser(str(path)))
    if path is not None and not (str(path).strip() and (root.is_file() or root.is_dir())):
        raise BadInput(
            "task.path",
            path,
            "a file or a folder that exists, or null for Python's own source code",
            f"an absolute path; this one was looked for from {Path.cwd()}",
        )
    pieces: list[str] = []
    left = limit
    for file in _files(root, standard_library=path is None) if root.is_dir() else [root]:
        piece = _read_file(file, path, left)
        pieces.append(piece)
        left -= len(piece)
        if left == 0:
            break
    text = "".join(pieces)
    if not text:
        what = "the files there are empty" if pieces else "no such file is there"
        raise BadInput(
            "task.path",
            path,
            f"a file that is not empty, or a folder with {', '.join(SUFFIXES)} files "
            f"that are not; in {root} {what}"
            if root.is_dir()
            else "a file that is not empty",
            "the path of a text of your own" if path is None else "",
        )
    return text


def _files(root: Path, standard_library: bool) -> Iterator[Path]:
    """The text files below ``root``: those of a folder first, then its subfolders, by name."""
    suffixes = (".py",) if standard_library else SUFFIXES
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith((".", "__pycache__"))
            and not (standard_library and name in SKIPPED)
        )
        for name in sorted(names):
            # _sysconfig… holds what the interpreter was built with: it differs between machines
            if name.lower().endswith(suffixes) and not (
                standard_library and name.startswith("_sysconfig")
            ):
                yield Path(folder, name)


def _read_file(file: Path, path: str | None, limit: int) -> str:
    """At most ``limit`` characters of one file, a byte-order mark left out."""
    enough = 4 * (limit + 1)  # a character takes at most 4 bytes; one more for the mark
    try:
        with file.open("rb") as stream:
            raw = stream.read(enough)
    except OSError as error:
        raise BadInput(
            "task.path", path, f"files that can be read; {file} cannot: {error.strerror}"
        ) from error
    try:
        # a file that was cut may end in the middle of a character, which is then left out
        text = codecs.getincrementaldecoder("utf-8")().decode(raw, final=len(raw) < enough)
    except UnicodeDecodeError as error:
        raise BadInput(
            "task.path",
            path,
            f"UTF-8 text; {file} is not, at byte {error.start} ({raw[error.start]:#04x})",
            f"converting it: iconv -f LATIN1 -t UTF-8 '{file}' > converted.txt",
        ) from error
    return text.removeprefix("\ufeff")[:limit]
