"""``hydra/sweeper=search``: Optuna proposes, a launcher trains, a data base remembers.

Hydra's own Optuna plugin reads the search space. Its loop is replaced: at each start that makes
``n_trials`` more trials, counts their folders from 0 again, and draws the same random numbers.

A trial has the number of its run's folder. What is proposed as trial k depends on the seed, on k,
and on the results of the batches before its own. So a search that was killed at any instant and
started again makes the trials of one that never stopped. Those left without a result come first,
and their runs are resumed from their last checkpoints.
"""

from __future__ import annotations

import io
import logging
import math
import pickle
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from hydra.core.utils import JobReturn
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper._impl import (
    OptunaSweeperImpl,
    create_params_from_overrides,
)
from omegaconf import DictConfig, OmegaConf
from optuna.trial import Trial, TrialState

from gradlab.errors import BadInput, first_line, number, whole_number
from gradlab.launch.build import build, plain
from gradlab.launch.check import check_keys
from gradlab.launch.resume import FREE, SWEEP
from gradlab.launch.resume import KEY as RESUME
from gradlab.launch.saved import save
from gradlab.launch.session import session, shown, tell
from gradlab.record.lock import Lock
from gradlab.record.private import scrub

SECTION = "hydra.sweeper"
_SEARCH = "search"
"""The attribute of a study that says what it searches."""
_MAY_CHANGE = tuple(key for key in FREE if key not in ("trainer.steps", "objective"))
_STATE = "cma:optimizer"
"""In the names of the attributes in which Optuna pickles the state of CMA-ES, in pieces."""
_log = logging.getLogger(__name__)


class OptunaSearch(OptunaSweeperImpl):
    """See the module.

    Args:
      folder: what ``hydra.sweep.dir`` is, unless that is given itself.
      sampler: a section with ``_target_`` and ``seed``.
      settings: those of the plugin: ``study_name``, ``storage``, ``direction``, ``n_trials``,
        ``n_jobs``, ``max_failure_rate``, ``params``.

    Raises:
      BadInput: naming the setting.
    """

    def __init__(self, folder: str, sampler: DictConfig, **settings: Any):
        kinds = {"study_name": str, "storage": str | None, "n_trials": int, "n_jobs": int}
        kinds |= {"direction": str | list[str], "max_failure_rate": float, "params": dict | None}
        settings = {
            name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for name, value in settings.items()
        }
        check_keys(SECTION, settings, kinds)
        whole_number(f"{SECTION}.n_trials", settings["n_trials"], 1)
        whole_number(f"{SECTION}.n_jobs", settings["n_jobs"], 1)
        number(f"{SECTION}.max_failure_rate", settings["max_failure_rate"], 0, 1)
        settings |= {"search_space": None, "custom_search_space": None}
        super().__init__(sampler=sampler, **settings)
        self.seed = sampler.get("seed")
        check_keys(f"{SECTION}.sampler", {"seed": self.seed}, {"seed": int | None})
        if self.seed is not None:
            whole_number(f"{SECTION}.sampler.seed", self.seed, 0, 2**32 - 1)
        optuna.logging.set_verbosity(logging.WARNING)

    def sweep(self, arguments: list[str]) -> None:
        """Search until the study holds ``n_trials`` trials that have ended.

        Args:
          arguments: the command line but for Hydra's own part.

        Raises:
          BadInput: before anything is made, for a first trial that would be refused, or a study of
            another search; later, if more than ``max_failure_rate`` of a batch failed.
        """
        self.folder = Path(self.sweep_dir)
        said = [*self._parse_sweeper_params_config(), *arguments]
        self.space, self.given = create_params_from_overrides(said)
        if not self.space:
            allowed = "at least one, e.g. 'optimizer.learning_rate=tag(log,interval(1e-4,1e-1))'"
            raise BadInput("a key to search over", None, allowed)
        self.names = self._objectives()
        self.directions = self._ways()
        self._try_first()
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(self.folder)
        try:
            lock.acquire()
        except BadInput as error:
            allowed = error.allowed.replace("a run", "a search").replace("writing to", "at")
            raise BadInput("hydra.sweep.dir", str(self.folder), allowed, error.hint) from None
        try:
            self.study = self._open_study()
            save(self.config, self.folder / SWEEP)  # as Hydra does, to be resumed by
            while trials := self._next_batch():
                self._launch(trials)
            self._report()
        finally:
            lock.release()

    # What is searched.

    def _objectives(self) -> list[str]:
        objective = plain(self._compose(self._overrides({})))["objective"]
        return [objective] if isinstance(objective, str) else objective

    def _ways(self) -> list[str]:
        ways = self._get_directions()
        for way in ways:
            if way not in ("minimize", "maximize"):
                raise BadInput(f"{SECTION}.direction", way, "minimize | maximize")
        if len(ways) != len(self.names):
            allowed = f"{len(self.names)} of minimize | maximize, for {', '.join(self.names)}"
            hint = f"'{SECTION}.direction=[{','.join(['minimize'] * len(self.names))}]'"
            raise BadInput(f"{SECTION}.direction", self.direction, allowed, hint)
        return ways

    def _overrides(self, params: Mapping[str, Any]) -> list[str]:
        every = {**params, **self.given}
        every.setdefault(RESUME, "auto")  # a run that the search began is resumed
        return [f"{name}={value}" for name, value in every.items()]

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of one job, without Hydra's own part."""
        assert self.hydra_context is not None
        assert self.config is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        self.choices = config.hydra.runtime.choices
        return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])

    def _try_first(self) -> None:
        """Refuse the search if its first trial would be refused: no study is made for a slip."""
        sampler = self._sampler(0, 0)
        trial = optuna.create_study(directions=self.directions, sampler=sampler).ask()
        build(plain(self._compose(self._overrides(self._propose(trial)))), self.choices)

    # What is remembered.

    def _open_study(self) -> optuna.Study:
        wanted = self._what_is_searched()
        try:
            if self.storage is None:
                raise KeyError
            study = optuna.load_study(self.study_name, self.storage)
        except KeyError:
            if any(self.folder.glob("*/run.json")):
                allowed = f"a folder without runs, for a new study {self.study_name}"
                hint = "another folder, or move the runs away"
                raise BadInput("hydra.sweep.dir", str(self.folder), allowed, hint) from None
            study = optuna.create_study(
                self.storage, study_name=self.study_name, directions=self.directions
            )
            study.set_user_attr(_SEARCH, wanted)
            return study
        _check_states(study, self.folder)
        earlier = study.user_attrs.get(_SEARCH, wanted)
        for key in sorted({*wanted, *earlier}):
            if wanted.get(key) != earlier.get(key):
                there = f"there {key} is {earlier.get(key) or 'as it was'}"
                allowed = f"a new name, or that of a study of the same search; {there}"
                hint = f"{SECTION}.study_name=ANOTHER"
                raise BadInput(f"{SECTION}.study_name", self.study_name, allowed, hint)
        return study

    def _what_is_searched(self) -> dict[str, str]:
        """By key, all that two commands must have in common to be one search."""
        aims = dict(zip(self.names, self.directions, strict=True))
        found = {f"objective {name}": way for name, way in aims.items()}
        for name, value in {**self.given, **self.space}.items():
            if not any(name == key or name.startswith(f"{key}.") for key in _MAY_CHANGE):
                found[name] = str(value)
        return scrub(found)

    # Trials.

    def _next_batch(self) -> list[Trial]:
        """Trials to launch together, numbered in a row; empty when there are enough.

        First those that a command before this one left without a result.
        """
        trials = self.study.get_trials(deepcopy=False)
        left = [trial for trial in trials if trial.state == TrialState.RUNNING]
        together = left[:1]
        for one, following in pairwise(left):
            if following.number != one.number + 1:
                break
            together.append(following)
        batch = [self._proposed(trial.number, trial._trial_id) for trial in together]
        first = batch[0].number if batch else len(trials)
        end = min(self.n_trials, (first // self.n_jobs + 1) * self.n_jobs)
        if len(together) == len(left):  # nothing lies between them and the new ones
            batch += [self._proposed(number) for number in range(len(trials), end)]
        return batch[: self.n_jobs]

    def _proposed(self, number: int, id: int | None = None) -> Trial:
        """A new trial, or that with an ``id`` again."""
        self.study.sampler = self._sampler(number, 0)
        trial = self.study.ask() if id is None else Trial(self.study, id)
        self._propose(trial)  # what it lacks, if it was killed while it was proposed
        return trial

    def _propose(self, trial: Trial) -> dict[str, Any]:
        for index, (name, distribution) in enumerate(self.space.items(), 1):
            trial.study.sampler = self._sampler(trial.number, index)
            trial._suggest(name, distribution)
        return trial.params

    def _sampler(self, *place: int) -> Any:
        """The sampler, with random numbers that depend on the seed and ``place`` only."""
        if self.seed is None:
            return instantiate(self.sampler)
        seed = np.random.SeedSequence([self.seed, *place]).generate_state(1)[0]
        return instantiate(self.sampler, seed=int(seed))

    def _launch(self, trials: Sequence[Trial]) -> None:
        overrides = [self._overrides(trial.params) for trial in trials]
        assert self.launcher is not None
        returns = self.launcher.launch(overrides, initial_job_idx=trials[0].number)
        failed = 0
        for trial, returned in zip(trials, returns, strict=True):
            values = _values(trial.number, returned)
            if all(map(math.isfinite, values)) and len(values) == len(self.names):
                self.study.tell(trial, values)
            else:
                self.study.tell(trial, state=TrialState.FAIL)
                failed += 1
            print(f"trial {trial.number}: {self._in_words(values)}{self._best()}", flush=True)
        if failed > self.max_failure_rate * len(trials):
            allowed = (
                f"at least {failed / len(trials):.2g}: {failed} of {len(trials)} trials failed"
            )
            raise BadInput(f"{SECTION}.max_failure_rate", self.max_failure_rate, allowed)

    # What is said.

    def _in_words(self, values: Sequence[float]) -> str:
        pairs = zip(self.names, values, strict=False)
        return ", ".join(f"{name} {value:.4g}" for name, value in pairs) or "failed"

    def _best(self) -> str:
        done = self._completed()
        if not done or len(self.names) > 1:
            return ""
        return f" (best so far {self.study.best_value:.4g}, trial {self.study.best_trial.number})"

    def _completed(self) -> int:
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))

    def _report(self) -> None:
        """Say what was found, and write it down where the plugin does."""
        total, done = len(self.study.get_trials(deepcopy=False)), self._completed()
        print(f"\nsearch {self.study_name}: {total} trials, {total - done} of them failed")
        if not done:
            tell("no trial of the search has a result")
            sys.exit(1)
        best = [self.study.best_trial] if len(self.names) == 1 else self.study.best_trials
        for trial in best:
            setting = " ".join(f"{name}={value}" for name, value in trial.params.items())
            print(f"best: trial {trial.number}, {self._in_words(trial.values)}: {setting}")
        found: dict[str, Any] = {"name": "optuna"}
        if len(self.names) == 1:
            found |= {"best_params": best[0].params, "best_value": best[0].value}
        else:
            found["solutions"] = [{"params": one.params, "values": one.values} for one in best]
        save(OmegaConf.create(found), self.folder / "optimization_results.yaml")
        print(f"search directory: {shown(self.folder)}")


class _State(pickle.Unpickler):
    """Reads a pickled state of CMA-ES, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """See ``pickle``."""
        arrays = ("_reconstruct", "scalar", "ndarray", "dtype")
        if module.startswith("numpy") and name in arrays:
            return super().find_class(module, name)
        if module.startswith("cmaes._") and name.endswith("CMA"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _check_states(study: optuna.Study, folder: Path) -> None:
    """Refuse a study from which Optuna would unpickle anything but a state of CMA-ES."""
    for trial in study.get_trials(deepcopy=False):
        kept = {name: text for name, text in trial.system_attrs.items() if name.startswith(_STATE)}
        if not kept:
            continue
        try:
            pieces = [_STATE] if _STATE in kept else [f"{_STATE}:{n}" for n in range(len(kept))]
            text = "".join(kept[name] for name in pieces)  # as Optuna does
            _State(io.BytesIO(bytes.fromhex(text))).load()
        except Exception as error:  # noqa: BLE001  (whatever hostile bytes lead to)
            reason = f"{type(error).__name__}: {first_line(error)}"
            allowed = f"a folder whose study can be read; trial {trial.number}: {reason}"
            raise BadInput("hydra.sweep.dir", str(folder), allowed) from None


def _values(number: int, returned: JobReturn) -> list[float]:
    """What a job returned; nothing if it raised."""
    try:
        value: Any = returned.return_value
    except BadInput as error:
        _log.warning("trial %d: %s", number, error)
        return []
    except Exception as error:  # noqa: BLE001  (one job must not end the search)
        _log.warning("trial %d crashed", number, exc_info=error)
        session.failed.append(f"trial {number}")
        return []
    return [float(one) for one in (value if isinstance(value, Sequence) else [value])]
