"""Measurements into TensorBoard's event files. Needs tensorboardX, the extra ``tensorboard``.

What a run looks like there (``tensorboard --logdir RUN_DIRECTORY``, or a folder of runs):

===========  ===================================================================================
scalars      the row's flat keys (:mod:`gradlab.record.keys`); at the end ``outcome/…``
images       at the end ``heatmap/adj_h/layer_0``, …: lag over training step, colour = log10
text         ``run/config``, ``run/facts``, ``run/baseline``; at the end ``run/outcome``,
             ``run/verdict`` and, for how to read the images, ``run/heatmaps``
===========  ===================================================================================

The x axis is the training step. Values that are not finite, also those too large for the float32
that TensorBoard keeps, are left out.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from gradlab.errors import BadInput
from gradlab.record.base import Description, Outcome, Row
from gradlab.record.directory import plain
from gradlab.record.heatmap import Histories, heatmap
from gradlab.record.keys import Keys, flat
from gradlab.record.private import scrub

FOLDER = "tensorboard"
"""Where the files are in a run directory."""
FLUSH_SECONDS = 2.0
"""What is written reaches the disk at most this often, and at the end."""
_PREFIX = "events.out.tfevents."
_LARGEST = float(np.finfo(np.float32).max)


class TensorBoardSink:
    """A sink that writes one TensorBoard event file, in this thread.

    The writers that TensorBoard's packages offer hand everything to a thread; when that thread
    dies of a full disk, they wait for it for ever. Here the failure reaches the caller. And they
    compute checksums in Python, which takes longer than all the rest of a row.

    Args:
      directory: the run directory; the file goes into its ``tensorboard/``.

    Raises:
      BadInput: tensorboardX is not installed.
    """

    part = FOLDER

    def __init__(self, directory: str | os.PathLike[str]):
        try:
            import tensorboardX  # noqa: F401
        except ImportError:
            raise BadInput(
                "record.tensorboard",
                True,
                "false, or true where the package tensorboardX is installed",
                "pip install 'gradlab[tensorboard]'",
            ) from None
        self.folder = Path(directory).resolve() / FOLDER
        self._writer: Any = None
        self._flushed = -math.inf
        self._step = 0

    def open(self, description: Description) -> None:
        """Start a new file, in place of the earlier ones if the run is resumed."""
        self._keys, self._histories = Keys(description), Histories(description)
        self.folder.mkdir(parents=True, exist_ok=True)
        if description.resumed:
            for earlier in self.folder.glob(_PREFIX + "*"):
                earlier.unlink()
        # TensorBoard's own names end in the host's name, which nobody needs to see. To parts of a
        # second: of a file whose name it has met TensorBoard reads only what is new at the end.
        self._writer = open(self.folder / f"{_PREFIX}{time.time():.6f}.gradlab", "wb")  # noqa: SIM115
        self._write(file_version="brain.Event:2")
        if description.resumed:  # for a TensorBoard that is open: its points will come again
            log = _proto("event").SessionLog
            self._write(step=0, session_log=log(status=log.START))
        for part in ("config", "facts", "baseline"):
            self._write_text(f"run/{part}", _table(getattr(description, part)))

    def extend(self, description: Description) -> None:
        """Write further variables from here on."""
        self._keys = Keys(description)
        self._histories.extend(description)

    def log(self, row: Row) -> None:
        """Write the row under flat keys, and remember its curves for the heatmaps."""
        self._step = row.step
        self._histories.add(row)
        self._write_scalars(self._keys(row))

    def close(self, outcome: Outcome) -> None:
        """Write the heatmaps and the outcome, and close the file."""
        if self._writer is None:
            return
        try:
            self._write_heatmaps()
            self._write_outcome(outcome)
            self._flush()
        finally:
            self._leave()

    def _write_scalars(self, values: Mapping[str, float]) -> None:
        summary = _proto("summary").Summary
        kept = [
            summary.Value(tag=key, simple_value=value)
            for key, value in values.items()
            if math.isfinite(value) and abs(value) <= _LARGEST
        ]
        if kept:
            self._write_summary(summary(value=kept))

    def _write_text(self, tag: str, words: str) -> None:
        from tensorboardX.summary import text

        self._write_summary(text(tag, words))

    def _write_heatmaps(self) -> None:
        from tensorboardX.summary import image

        captions = []
        for curves in self._histories:
            colours, caption = heatmap(curves)
            self._write_summary(image(f"heatmap/{curves.key}", colours, dataformats="HWC"))
            captions.append(f"- {curves.key}: {caption}")
        if captions:  # not with the images: TensorBoard warns of an old-style image that has one
            self._write_text("run/heatmaps", "\n".join(captions))

    def _write_outcome(self, outcome: Outcome) -> None:
        figures = {**outcome.timings, **outcome.summary}
        known = {key: float(value) for key, value in figures.items() if value is not None}
        self._write_scalars({f"outcome/{key}": value for key, value in known.items()})
        words = {"status": outcome.status, "reason": outcome.reason}
        words |= {key: f"{value:.6g}" for key, value in known.items()}
        verdict = "\n".join(f"- {line}" for line in scrub(outcome.verdict))
        self._write_text("run/outcome", _table(words))
        self._write_text("run/verdict", verdict)

    def _write_summary(self, summary: Any) -> None:
        self._write(step=self._step, summary=summary)

    def _write(self, **content: Any) -> None:
        """Write one event of now; to disk, if the last time was long enough ago."""
        event = _proto("event").Event(wall_time=time.time(), **content)
        try:
            self._writer.write(framed(event.SerializeToString()))
            if time.monotonic() - self._flushed >= FLUSH_SECONDS:
                self._flush()
        except OSError:
            self._leave()
            raise

    def _flush(self) -> None:
        self._writer.flush()
        os.fsync(self._writer.fileno())
        self._flushed = time.monotonic()

    def _leave(self) -> None:
        """Close the file, whether or not what is left of it can be written."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()


def framed(content: bytes) -> bytes:
    """A record of an event file: its length, a checksum of that, the content, a checksum of it."""
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _checksum(content: bytes) -> bytes:
    """CRC-32C, masked as TensorFlow does it: rotated, and a constant added."""
    crc = google_crc32c.value(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@functools.cache
def _proto(name: str) -> Any:
    """A module of TensorBoard's messages; their classes are made at run time, so typed as Any."""
    return importlib.import_module(f"tensorboardX.proto.{name}_pb2")


def _table(content: Mapping[str, Any]) -> str:
    """A nest of dicts as a Markdown table of two columns, keys joined by dots."""
    lines = ["| key | value |", "|---|---|"]
    for key, value in flat(scrub(plain(content))).items():
        shown = str(value).replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {key} | {shown} |")
    return "\n".join(lines)
