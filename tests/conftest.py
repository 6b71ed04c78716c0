"""The command line as a fixture; every test on the CPU, and none reaches W&B's servers."""

import gc
import os
import pickle
import subprocess
import sys
import tempfile
from importlib.metadata import version
from typing import NamedTuple

import pytest

from tests import ROOT

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite is compiling; the compiler at its least effort halves it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    # Neither saves anything at run time in programs this small: without them it takes a third.
    # Newer versions do not know the first, and refuse it.
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", flags)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("NPROC", str(8 * (os.cpu_count() or 1)))  # as in gradlab.__main__
# No array is stretched over a new axis, nor changed in type, unless the code says so.
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ["WANDB_MODE"] = "disabled"
os.environ["MPLBACKEND"] = "agg"
os.environ["SQLALCHEMY_SILENCE_UBER_WARNING"] = "1"  # optuna 2 is written for sqlalchemy 1.4


def pytest_configure(config):
    """What one test has compiled another takes, also one in another process."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="gradlab-compiled-", ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    # As pyproject.toml for the tests: of a file that another process is writing, nobody speaks.
    os.environ["PYTHONWARNINGS"] = "ignore:Error reading persistent compilation cache:UserWarning"


SMOKE = {
    "cells/test_equations.py": ["test_lstm_is_the_textbook"],
    "bptt/test_scaling.py": ["test_pow2_is_exact_over_the_whole_normal_range"],
    "bptt/test_unroll.py": ["test_scalar_linear_rnn_follows_w_to_the_lag_over_5000_steps"],
    "probes/test_measurements.py": [
        "test_the_line_over_lag_is_numpys_polyfit",
        "test_forget_products_are_products",
    ],
    "regularizers/test_regularizers.py": ["test_bad_options"],
    "watching/test_watch.py": ["test_every_layer_is_replaced_in_place_wherever_it_lies"],
    "convert/test_from_keras.py": ["test_activations_are_keras_own"],
    "tasks/test_adding.py": ["test_every_position_of_each_half_is_marked"],
    "training/test_loop.py": [
        "test_rows_come_at_the_logged_steps_with_every_variable_announced",
        "test_losses_by_hand",
    ],
    "record/test_directory.py": [
        "test_arrays_round_trip",
        "test_run_json",
        "test_a_run_that_was_cut_reads_as_far_as_it_is_whole",
        "test_a_run_cut_anywhere_reads_what_is_whole_or_is_refused",
        "test_a_coordinate_that_is_cut_is_refused",
    ],
    "record/test_figures.py": ["test_a_single_row"],
    "record/test_wandb.py": ["test_history"],
    "compare/test_page.py": ["test_the_page_is_one_file_that_may_reach_nothing"],
    "compare/test_table.py": ["test_a_setting_is_what_differs_by_the_seed_alone"],
    "claims/test_sweep.py": ["test_a_curve_is_the_recorded_one_by_lag"],
    "launch/test_bad_input.py": ["test_files_of_the_user"],
    "test_cli.py": [
        "test_questions_are_answered_without_jax",
        "test_the_siblings_of_a_refused_job_finish",
    ],
    "yesterday/test_yesterday.py": [
        "test_a_run_reads_as_it_read_then",
        "test_a_sweep_that_was_killed_has_the_table_and_the_page_that_it_had",
        "test_runs_of_different_shapes_are_compared",
        "test_an_interrupted_run_ends_as_the_run_that_was_never_stopped",
        "test_a_killed_sweep_goes_on_to_its_end",
    ],
    "test_house.py": ["test_import_is_light", "test_every_smoke_test_is_there"],
}
"""Those of ``pytest -m smoke``: a few quick ones of every room, by file."""
ACCELERATOR = {
    "bptt/test_unroll.py": [
        "test_scalar_linear_rnn_follows_w_to_the_lag_over_5000_steps",
        "test_stacked_linear_rnns_carry_the_scale_from_layer_to_layer",
        "test_lstm_without_recurrent_weights_follows_its_forget_gate",
        "test_adjoints_equal_an_explicit_float64_jacobian_product",
        "test_taps_change_no_bit_of_the_gradient",
    ],
    "bptt/test_precision.py": ["test_a_long_gradient_is_that_of_float64_on_an_accelerator"],
    "training/test_population.py": ["test_members_equal_their_solo_runs"],
    "training/test_resume.py": ["test_stopped_again_and_again"],
    "training/test_mesh.py": ["test_all_devices_of_an_accelerator_give_what_one_gives"],
}
"""Those of ``pytest -m accelerator``: what another device could get wrong, in a minute or two."""
MARKED = {"smoke": SMOKE, "accelerator": ACCELERATOR}


def pytest_collection_modifyitems(items):
    for item in items:
        file = item.path.relative_to(ROOT / "tests").as_posix()
        for mark, names in MARKED.items():
            if item.originalname in names.get(file, ()):
                item.add_marker(mark)


def pytest_collection_finish():
    gc.freeze()  # what was imported stays: never looked through again
    gc.set_threshold(50_000)  # tracing makes many objects, and few in circles


def pytest_report_header():
    return "minutes, not seconds; a first answer: pytest -m smoke"


SOURCE = str(ROOT / "src")


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def settled():
    """What earlier tests made is not looked through again: a full collection takes a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def tidy(settled):
    """What a test leaves to the garbage collector is gone before the next."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def read_once():
    """Hydra reads its own files and those of ``conf/`` once, and not at every composition.

    What a test adds with ``--config-dir`` is read every time.
    """
    from hydra._internal.config_repository import ConfigRepository
    from hydra.core.object_type import ObjectType

    load, kept = ConfigRepository.load_config, {}

    def load_config(self, config_path):
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.provider not in ("hydra", "main", "schema"):
            return load(self, config_path)
        key = source.provider, source.path, config_path
        if key not in kept:
            kept[key] = pickle.dumps(load(self, config_path))
        # A copy, for Hydra changes what it is given.
        return pickle.loads(kept[key])  # noqa: S301  (what was kept above)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", load_config)
        yield


@pytest.fixture
def command(read_once, tmp_path, monkeypatch, capsys):
    """``command("trainer.steps=2", ...)`` in this process, in a folder of the test's own."""
    import jax

    from gradlab.__main__ import main

    jax.devices()  # there is one in a process of tests; a command would make one for each core
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
