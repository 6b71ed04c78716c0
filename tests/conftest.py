"""The command line as a fixture; every test on the CPU, and none reaches W&B's servers."""

import os
import subprocess
import sys
from typing import NamedTuple

import pytest

from tests import ROOT

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite is compiling; the compiler at its least effort halves it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("NPROC", str(8 * (os.cpu_count() or 1)))  # as in gradlab.__main__
os.environ["WANDB_MODE"] = "disabled"
os.environ["MPLBACKEND"] = "agg"
os.environ["SQLALCHEMY_SILENCE_UBER_WARNING"] = "1"  # optuna 2 is written for sqlalchemy 1.4


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """What one test has compiled another takes: a fifth of the time of those that compile most."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


SOURCE = str(ROOT / "src")


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """``command("trainer.steps=2", ...)`` in this process, in a folder of the test's own."""
    from gradlab.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gradlab", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = error.code or 0
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def process(tmp_path):
    """The same as a process that has just been started, with W&B offline."""
    started = []

    def start(*arguments, options=()):
        environment = {"PYTHONPATH": SOURCE, "WANDB_MODE": "offline"}
        one = subprocess.Popen(
            [sys.executable, *options, "-m", "gradlab", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(one)
        return one

    yield start
    for one in started:
        one.kill()
        one.communicate()
