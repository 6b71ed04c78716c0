"""The compile cache: entries come back whole or not at all, and no fault of it ends a run."""

import os
import re
import resource
import threading
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compilation_cache as jaxs

from gradlab.training import compile_cache as module
from gradlab.training.compile_cache import Entries, compile_cache, keep_compiled

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_enable_xla_caches",
)


@pytest.fixture
def unset(tmp_path, monkeypatch):
    """As a process in which nobody has said where the cache is; gives the user's cache folder."""
    kept = {name: getattr(jax.config, name) for name in SETTINGS}
    home = tmp_path / "ein Ordner, ü"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setattr(jaxs, "get_file_cache", jaxs.get_file_cache)
    monkeypatch.setattr(module, "_why_none", module._why_none)
    jax.config.update("jax_compilation_cache_dir", None)
    jaxs.reset_cache()
    yield home
    for name, value in kept.items():
        jax.config.update(name, value)
    jaxs.reset_cache()


def compiled():
    """What a program gives that is compiled now."""
    one = jax.jit(lambda x: jnp.cumsum(jnp.sin(x) * 3.0)).lower(jnp.arange(8.0)).compile()
    return np.asarray(one(jnp.arange(8.0)))


def test_what_one_start_compiled_the_next_reads_unless_it_is_damaged(unset, monkeypatch):
    plain = compiled()
    keep_compiled()
    folder = unset / "gradlab" / "compiled"
    assert compile_cache() == jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    read, get = [], Entries.get

    def spy(entries, key):
        read.append(get(entries, key))
        return read[-1]

    monkeypatch.setattr(Entries, "get", spy)

    def start():
        read.clear()
        np.testing.assert_array_equal(compiled(), plain)
        return [one is not None for one in read]

    assert not any(start())
    assert read
    (path, *_) = whole = {path: path.read_bytes() for path in folder.iterdir()}
    assert all(start())
    content = whole[path]
    flipped = content[:50] + bytes([content[50] ^ 1]) + content[51:]
    for damaged in (b"", b"x" * 10, content[:-1], content[: len(content) // 2], flipped):
        path.write_bytes(damaged)
        assert start().count(False) == 1
        assert all(start())  # mended
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole}


@pytest.mark.parametrize(
    ("name", "value"),
    [("jax_compilation_cache_dir", "/their/own"), ("jax_enable_compilation_cache", False)],
)
def test_the_users_word_wins(unset, name, value):
    jax.config.update(name, value)
    keep_compiled()
    assert getattr(jax.config, name) == value
    assert compile_cache() == (value or "none: jax_enable_compilation_cache is off")
    assert not unset.exists()


def a_file(home, monkeypatch):
    home.mkdir()
    (home / "gradlab").write_text("")


def nobodys(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self")


def anothers(home, monkeypatch):
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)


def everybodys(home, monkeypatch):
    folder = home / "gradlab" / "compiled"
    folder.mkdir(parents=True)
    folder.chmod(0o777)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (a_file, "gradlab/compiled: (File exists|Not a directory)"),
        (nobodys, "/proc/self/gradlab/compiled: "),
        (anothers, "it belongs to another user"),
        (everybodys, "others may write to it"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told_once(unset, monkeypatch, caplog, spoil, why):
    spoil(unset, monkeypatch)
    for _ in range(2):  # as of the jobs of a sweep
        keep_compiled()
    assert jax.config.jax_compilation_cache_dir is None
    (said,) = caplog.messages
    for text in (said, compile_cache()):
        assert re.search(why, text)


@pytest.mark.parametrize("home", ["/", "some/where", ""])
def test_without_a_home_there_is_none(unset, monkeypatch, caplog, home):
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", home)
    keep_compiled()
    assert compile_cache() == "none: there is no home folder"
    monkeypatch.setenv("HOME", str(unset))
    keep_compiled()
    assert compile_cache() == str(unset / ".cache" / "gradlab" / "compiled")
    assert not caplog.messages


@contextmanager
def no_file_above(size):
    """As a disk that is full: it cuts what is written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_nothing_and_is_told_once(tmp_path, caplog):
    entries = Entries(tmp_path)
    entries.put("first", b"kept")
    with no_file_above(100):
        entries.put("second", b"x" * 1000)
    entries.put("third", b"not tried")
    assert len(caplog.messages) == 1
    assert "the compile cache cannot be written to" in caplog.text
    assert [entries.get(key) for key in ("first", "second", "third")] == [b"kept", None, None]
    assert len(list(tmp_path.iterdir())) == 1
    assert Entries(tmp_path / "gone").get("first") is None


def test_what_was_not_used_for_longest_makes_room(tmp_path):
    entries = Entries(tmp_path, most=1000)
    left = tmp_path / "of a process that was killed"
    left.write_bytes(b"x" * 100)
    os.utime(left, (0, 0))
    for index in range(5):
        entries.put(str(index), bytes(100))
        os.utime(entries._file(str(index)), (index + 1, index + 1))
    assert entries.get("0") == bytes(100)  # and is used now
    entries = Entries(tmp_path, most=1000)
    entries.put("5", bytes(500))
    entries.put("larger than all", bytes(1001))
    kept = [entries.get(str(index)) is not None for index in range(6)]
    assert kept == [True, False, False, True, True, True]
    assert not left.exists()
    for index in range(40):
        entries.put(f"more {index}", bytes(100))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000


def test_another_processor_has_entries_of_its_own(tmp_path, monkeypatch):
    Entries(tmp_path).put("key", b"for this one")
    monkeypatch.setattr(module, "_machine", lambda: "flags: none")
    assert Entries(tmp_path).get("key") is None


def test_several_at_once_see_whole_entries_alone(tmp_path):
    """Each with entries of its own, as processes have: they share no lock."""
    wrong = []

    def work(number):
        entries = Entries(tmp_path, most=10**6)
        for turn in range(30):
            key = str(turn % 4)
            entries.put(key, key.encode() * (20_000 + number))
            found = entries.get(key)
            if found is not None and set(found) != set(key.encode()):
                wrong.append(key)
        wrong.extend(["could not write"] * entries.full)

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong
    assert all(Entries(tmp_path).get(key) for key in "0123")
    assert len(list(Path(tmp_path).iterdir())) == 4
