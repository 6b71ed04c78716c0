"""Compiled programs, kept on disk: the next start of the same program does not compile it again.

jax has such a cache, and asks it for an entry by a key of the program, the versions, the flags and
the devices. Here is where it lies, and a way to keep its entries that several processes can use at
once: jax 0.10 writes an entry in place, so that others may read half of it, and one that was cut
stays so. An entry here is written beside its place, and moved there when it is whole; it carries a
checksum; and the entries that were not used for longest make room for new ones.

What is in the cache is executed. It is only taken from a folder that nobody else may write to.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import stat
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import jax

FOLDER, ENABLED = "jax_compilation_cache_dir", "jax_enable_compilation_cache"
MOST_BYTES = 2**29
"""About the most that the entries take together."""
_DIGEST = hashlib.sha256().digest_size
_log = logging.getLogger(__name__)
_why_none = "none was asked for"


def keep_compiled() -> None:
    """Keep what is compiled from now on in the user's cache folder.

    What the user has told jax of its cache stays as it is. A folder that cannot be used costs time
    only: it is told, and everything is compiled.
    """
    global _why_none
    if _asked(FOLDER) is not None or not _asked(ENABLED):
        return
    folder = _users_folder()
    if folder is None:
        _why_none = "there is no home folder"
        return
    if why := _made(folder):
        known, _why_none = _why_none, f"{folder}: {why}"
        if _why_none != known:
            _log.warning("no compile cache, so that each start compiles: %s", _why_none)
        return
    _hand_to_jax(folder)


def compile_cache() -> str:
    """The folder of the compile cache, or why there is none."""
    if not _asked(ENABLED):
        return "none: jax_enable_compilation_cache is off"
    return _asked(FOLDER) or f"none: {_why_none}"


def _asked(setting: str) -> Any:
    """What the user or somebody else has set of jax's cache."""
    return getattr(jax.config, setting)


def _users_folder() -> Path | None:
    """Where this system keeps what can be made again; None if there is no such place."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():
        return given / "gradlab" / "compiled"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if not home.is_absolute() or home == home.parent:
        return None
    caches = ".cache"
    if sys.platform == "darwin":
        caches = "Library/Caches"
    elif sys.platform == "win32":
        caches = "AppData/Local"
    return home / caches / "gradlab" / "compiled"


def _made(folder: Path) -> str:
    """Make the folder if there is none; gives what is wrong with it, or nothing."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        return error.strerror or str(error)
    if not stat.S_ISDIR(found.st_mode):
        return "not a folder"
    if sys.platform != "win32":
        if found.st_uid != os.geteuid():
            return "it belongs to another user"
        if found.st_mode & 0o022:
            return "others may write to it"
    return ""


def _hand_to_jax(folder: Path) -> None:
    from jax._src import compilation_cache

    entries, jaxs_own = Entries(folder), compilation_cache.get_file_cache

    def get_file_cache(path: str):
        return (entries, path) if path == str(folder) else jaxs_own(path)

    compilation_cache.get_file_cache = get_file_cache
    jax.config.update(FOLDER, str(folder))
    # A start compiles many small programs, too; together they take as long as a large one.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # On a GPU XLA would keep files of its own beside the entries, and fail where it cannot.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    # An entry that cannot be used is compiled again and replaced.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")


class Entries:
    """Entries in a folder, by jax's keys; see ``jax._src.compilation_cache_interface``.

    Nothing here raises: an entry that cannot be read is not there, and one that cannot be written
    is told once.

    Args:
      folder: where; it exists.
      most: bytes, see :data:`MOST_BYTES`.
    """

    def __init__(self, folder: Path, most: int = MOST_BYTES):
        self._path = self.folder = folder
        self.most, self.room, self.full = most, 0, False
        self.machine = _machine()
        self.lock = threading.Lock()  # programs are compiled side by side

    def get(self, key: str) -> bytes | None:
        """What was kept for a key; None if nothing was, or not the whole of it."""
        path = self._file(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        value = content[_DIGEST:]
        if hashlib.sha256(value).digest() != content[:_DIGEST]:
            return None
        with contextlib.suppress(OSError):  # of a folder that can only be read
            os.utime(path)
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keep something for a key."""
        with self.lock:
            if self.full:
                return
            try:
                self._put(key, value)
            except OSError as error:
                self.full = True
                message = "the compile cache cannot be written to, so that the next start compiles"
                _log.warning("%s: %s: %s", message, self.folder, error.strerror or error)

    def _put(self, key: str, value: bytes) -> None:
        size = _DIGEST + len(value)
        if size > self.most:
            return
        if size > self.room:
            self._make_room(size)
        handle, name = tempfile.mkstemp(dir=self.folder)
        try:
            with open(handle, "wb") as file:
                file.write(hashlib.sha256(value).digest() + value)
            os.replace(name, self._file(key))
        except BaseException:
            os.unlink(name)
            raise
        self.room -= size

    def _make_room(self, size: int) -> None:
        """Remove what was not used for longest, and what processes that were killed left."""
        files = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    files.append((found.st_mtime_ns, found.st_size, entry.path))
        taken = sum(size for _, size, _ in files)
        # To spare, so that this is rare.
        bound = self.most - max(size, self.most // 8)
        for _, freed, path in sorted(files):
            if taken <= bound:
                break
            Path(path).unlink(missing_ok=True)
            taken -= freed
        self.room = self.most - taken

    def _file(self, key: str) -> Path:
        name = hashlib.sha256(f"{self.machine} {key}".encode()).hexdigest()
        return self.folder / name


def _machine() -> str:
    """What a program that was compiled for this processor may count on."""
    lines = []
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:  # those of the first core
            if not line.strip():
                break
            if line.startswith(("flags", "Features", "model name")):
                lines.append(line)
    return "".join(lines) or f"{platform.machine()} {platform.processor()}"
