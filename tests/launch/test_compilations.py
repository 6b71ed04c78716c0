"""Nothing is compiled between the steps of a run, whatever the experiment."""

import dataclasses

import jax
import pytest
from hydra import compose, initialize_config_dir

from gradlab.experiment import build_steps
from gradlab.launch.build import build, plain
from gradlab.training.loop import Member, train
from gradlab.training.program import Solo
from gradlab.training.schedule import Schedule
from tests.launch.test_compose import CONF, options
from tests.training.test_loop import compilations

STEPS = 12


@pytest.mark.slow
@pytest.mark.parametrize("name", options("experiment"))
def test_nothing_compiles_after_the_first_rows(name, monkeypatch):
    """With all that an experiment measures, often: rows, close looks, validation, checkpoints."""
    monkeypatch.chdir(CONF.parent)
    sizes = ["model.hidden=4", "trainer.batch=4", f"trainer.steps={STEPS}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = plain(compose("config", [f"experiment={name}", *sizes]))
    experiment = build(config, {"experiment": name})
    trainer = dataclasses.replace(
        experiment.trainer, log_every=3, eval_every=4, checkpoint_seconds=0
    )
    steps = build_steps(experiment)
    program, saved = Solo(steps, jax.random.key(0), trainer.eval_batch), []
    with compilations() as counts:
        program.compile()
        member = Member([counts], save=saved.append)
        train(trainer, program, [member], close=Schedule(4))
    assert member.outcome.status == "finished"
    assert counts.rows[-1].step == STEPS - 1
    assert counts.at_rows[-1] == counts.at_rows[1] > 0
    assert saved
