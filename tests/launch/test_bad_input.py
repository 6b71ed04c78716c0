"""Bad input ends with one message that helps, exit code 2, and nothing left behind."""

import re

import pytest

from tests.small import QUIET, TINY

OWN = {
    "conf/experiment/wrong_key.yaml": "# @package _global_\ntrainer:\n  stepz: 3\n",
    "conf/experiment/wrong_model_key.yaml": "# @package _global_\nmodel:\n  hiden: 3\n",
    "conf/experiment/wrong_section.yaml": "# @package _global_\ntrainr:\n  steps: 3\n",
    "conf/experiment/wrong_group.yaml": (
        "# @package _global_\ndefaults:\n  - override /modle: rnn\n"
    ),
    "conf/experiment/wrong_option.yaml": (
        "# @package _global_\ndefaults:\n  - override /model: gruu\n"
    ),
    "conf/experiment/wrong_yaml.yaml": "model:\n  hidden: [3\n",
    "conf/model/wrong_carry.yaml": "cell:\n  _target_: my_cells.WrongCarry\n",
    "conf/model/wrong_arguments.yaml": "cell:\n  _target_: my_cells.WrongArguments\n",
    "conf/model/a_function.yaml": "cell:\n  _target_: my_cells.a_function\n",
    "conf/model/not_there.yaml": "cell:\n  _target_: my_cells.NotThere\n",
    "conf/model/loud.yaml": "cell:\n  _target_: my_cells.Loud\n",
    "conf/model/names.yaml": "cell:\n  _target_: my_cells.OnlyByOtherNames\n",
    "conf/model/broken.yaml": "cell:\n  _target_: my_broken_file.Cell\n",
    "my_broken_file.py": "import a_package_that_is_not_there\n",
    "my_cells.py": """
import jax.numpy as jnp
from flax import nnx

class WrongCarry(nnx.RNNCellBase):
    num_feature_axes = 1
    def __init__(self, in_features, hidden_features, *, rngs):
        self.width = hidden_features
    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], self.width))
    def __call__(self, carry, x):
        return (carry, carry), carry

class WrongArguments(WrongCarry):
    def __init__(self, n_in): ...

def a_function(in_features, hidden_features, *, rngs): ...

class Loud(WrongCarry):
    def __init__(self, in_features, hidden_features, *, rngs):
        raise RuntimeError("no such size")

class OnlyByOtherNames(WrongCarry):
    def __init__(self, *, n_in, n_out, rngs): ...
""",
}


@pytest.fixture
def refused(command, tmp_path):
    """Run a command that must be refused; gives its message."""

    def go(*arguments):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        done = command(*arguments)
        assert done.code == 2
        assert done.out == ""
        assert "Traceback" not in done.err
        assert re.findall("^gradlab: ", done.err, re.MULTILINE) == ["gradlab: "]
        assert done.err.startswith("gradlab: ")
        files = [path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts]
        assert {p: p.stat().st_mtime_ns for p in files if p.is_file()} == before
        assert not (tmp_path / "outputs").exists()
        assert not (tmp_path / "multirun").exists()
        return done.err

    return go


# What is typed, and what the message must say: the key, the value, what is allowed, what to try.
TYPED = {
    "experiment=addin": [
        "experiment: got 'addin'",
        "adding, applications",
        "try: experiment=adding",
    ],
    "model=lstn": ["model: got 'lstn'", "rnn", "try: model=lstm"],
    "model=3": ["model: got '3'", "rnn"],
    "probe=adjont": ["probe: got 'adjont'", "grad_norm", "try: probe=adjoint"],
    "probe=[adjont]": ["probe: got 'adjont'", "grad_norm", "try: probe=adjoint"],
    "probe=null": ["probe: got 'null'", "none, "],
    "modle=rnn": ["modle: got 'rnn'", "model, objective, optimizer", "try: model=rnn"],
    "modl.hidden=3": ["modl.hidden: got '3'", "try: model.hidden=3"],
    "trainer.stepz=3": ["trainer.stepz: got '3'", "trainer.log_every", "try: trainer.steps=3"],
    "+trainer.foo=3": ["trainer.foo: got 3", "log_every"],
    "+model.hiden=3": ["model.hiden: got 3", "bidirectional", "try: model.hidden"],
    "+trainer.steps=3": ["trainer.steps", "remove + prefix"],
    "+model=rnn": ["model: got 'rnn'", "try: model=rnn"],
    "+record.foo=3": ["record.foo: got 3", "wandb"],
    "+foo=3": ["foo: got 3", "trainer"],
    "hydra.foo=3": ["hydra.foo: got '3'", "--cfg hydra"],
    "~foo": ["'foo' does not exist"],
    "~seed": ["seed: got nothing", "a whole number"],
    "~task": ["task: got nothing", "a section of its own"],
    "~model": ["model.cell: got nothing"],
    "~trainer.steps": ["trainer.steps: got nothing", "Trainer needs one"],
    "trainer.steps=abc": ["trainer.steps: got 'abc'", "a whole number"],
    "trainer.steps=1e3": ["trainer.steps: got 1000.0", "try: trainer.steps=1000"],
    "trainer.steps=???": ["trainer.steps: got '???'", "none is given yet"],
    "trainer.steps=${foo}": ["trainer.steps: got '${foo}'", "'foo' not found"],
    "trainer.steps=0": ["trainer.steps: got 0", "at least 1"],
    "trainer.test_lengths=[0]": ["trainer.test_lengths: got 0", "at least 1"],
    "trainer.test_lengths=[9,-1]": ["trainer.test_lengths: got -1", "at least 1"],
    "trainer.test_lengths=[x]": ["trainer.test_lengths: got ['x']", "a list of whole numbers"],
    "trainer.test_lengths=[9,5,9]": ["trainer.test_lengths: got [9, 5, 9]", "each length once"],
    "experiment=digits trainer.test_lengths=[65]": ["test_lengths: got 65", "at most 64"],
    "experiment=copying trainer.test_lengths=[20]": ["test_lengths: got 20", "at least 21"],
    "trainer.batch=0": ["trainer.batch: got 0", "at least 1"],
    "probe.every=0": ["probe.every: got 0", "at least 1"],
    "probe.examples=0": ["probe.examples: got 0", "at least 1"],
    "probe.examples=x": ["probe.examples: got 'x'", "a whole number"],
    "trainer.regularizer=omga": ["got 'omga'", "flossing, omega", "try: trainer.regularizer=omega"],
    "trainer.omega.weigth=1": ["trainer.omega.weigth: got '1'", "try: trainer.omega.weight=1"],
    "trainer.omega.weight=x": ["trainer.omega.weight: got 'x'", "a finite number"],
    "model.hidden=1.5": ["model.hidden: got 1.5", "a whole number", "try: model.hidden=2"],
    "model.hidden=0": ["model.hidden: got 0", "from 1 to"],
    "model.layers=-1": ["model.layers: got -1", "from 1 to"],
    "model.layers=null": ["model.layers: got nothing (null)", "a whole number"],
    "model.initial_state=learn": [
        "model.initial_state: got 'learn'",
        "zero | random | learned",
        "try: model.initial_state=learned",
    ],
    "model.initial_state=0": ["model.initial_state: got 0", "zero | random | learned"],
    "trainer.backward=no_h": ["trainer.backward: got 'no_h'", "full | no_h_path | no_c_path"],
    "model=rnn trainer.backward=no_h_path": [
        "trainer.backward: got 'no_h_path'",
        "SimpleRNN has no retention gate",
        "try: an LSTM or a GRU",
    ],
    "trainer.segments=1": ["trainer.segments: got 1", "at least 2, auto, or null for none"],
    "trainer.segments=many": ["trainer.segments: got 'many'", "a whole number, or auto, or null"],
    "task.length=100 trainer.segments=101": [
        "trainer.segments: got 101",
        "100 at most",
        "try: trainer.segments=10",
    ],
    "trainer.products=float16": ["trainer.products: got 'float16'", "float32 | bfloat16"],
    "model.cell=null": ["model.cell: got nothing (null)", "a section"],
    "task.length=0": ["task.length: got 0", "at least 2"],
    "seed=-1": ["seed: got -1", "from 0 to"],
    "seed=4294967296": ["seed: got 4294967296", "from 0 to 4294967295"],
    "objective=[]": ["objective: got []", "a figure of the summary", "try: objective=val/loss"],
    "objective=3": ["objective: got 3", "text, or a list of texts"],
    "objective=val/accuracy": ["objective: got 'val/accuracy'", "val/loss, "],
    "optimizer.clip_norm=None": ["got 'None'", "try: optimizer.clip_norm=null"],
    "optimizer.schedule=cosin": ["got 'cosin'", "linear", "try: optimizer.schedule=cosine"],
    "optimizer.learning_rate=nan": ["optimizer.learning_rate: got nan", "a finite number"],
    "optimizer.learning_rate=-1": ["optimizer.learning_rate: got -1", "a positive number"],
    "optimizer.rule.b1=x": ["optimizer.rule.b1: got 'x'", "a finite number"],
    "optimizer.rule._target_=optax.adm": ["no adm in optax", "optax.adam"],
    "optimizer.rule._target_=optax": ["optimizer.rule._target_: got 'optax'", "a module"],
    "task._target_=not_there.Task": ["got 'not_there.Task'", "No module named 'not_there'"],
    "task._target_=gradlab.cells.LSTM": ["got 'gradlab.cells.LSTM'", "a subclass of Task"],
    "model.cell._target_=optax.adam": ["got 'optax.adam'", "a subclass of RNNCellBase"],
    "record.wandb.mode=foo": ["record.wandb.mode: got 'foo'", "offline | online | disabled"],
    "record.wandb.tags=foo": ["record.wandb.tags: got 'foo'", "a list of texts"],
    "record.figures=yess": ["record.figures: got 'yess'", "true or false"],
    "optimizer.rule.b1=nan": ["optimizer.rule.b1: got nan", "a finite number"],
    "optimizer.rule.b1=true": ["optimizer.rule.b1: got True", "a finite number"],
    "optimizer.rule.b1=-1": ["optimizer.rule.b1: got -1", "a number from 0 and below 1"],
    "optimizer.rule.b2=1e6": ["optimizer.rule.b2: got 1000000.0", "below 1"],
    "optimizer.rule.b2={a:1}": ["optimizer.rule.b2: got {'a': 1}", "a finite number"],
    "optimizer.rule.eps=-1": ["optimizer.rule.eps: got -1", "a number from 0 to 1"],
    "+optimizer.rule.mu_dtype=foo": ["optimizer.rule.mu_dtype: got 'foo'", "float32 | bfloat16"],
    "+optimizer.rule._args_=[1]": ["optimizer.rule._args_: got [1]", "by their names"],
    "optimizer=sgd optimizer.rule._target_=optax.lbfgs": ["got 'lbfgs'", "making it ends with"],
    "+model.cell.dtype=float99": ["model.cell.dtype: got 'float99'", "float16, or null"],
    "model.cell.forget_bias=1e30": ["model.cell.forget_bias: got 1e+30", "to 1e+06"],
    "+model.cell._args_=[1]": ["model.cell._args_: got [1]", "by their names"],
    "+task._partial_=true": ["task._partial_: got True", "none of Hydra's own words"],
    "task._target_=builtins.dict": ["got 'builtins.dict'", "a subclass of Task"],
    "trainer.regularizer=[]": ["trainer.regularizer: got []", "flossing, omega"],
    "trainer.regularizer=flossing trainer.flossing.interval=101": ["interval: got 101", "1 to 100"],
    f"trainer.steps={2**63}": ["trainer.steps: got 9223372036854775808", "to 2147483647"],
    f"trainer.steps={2**31 - 1}": ["trainer.steps: got", "the rows to be recorded"],
    f"trainer.checkpoint_seconds={10**400}": ["trainer.checkpoint_seconds: got 1000", "…"],
    "trainer.batch=1000000000": ["trainer.batch: got", "GB are for the states of one batch"],
    "trainer.test_lengths=[1000000000]": ["trainer.test_lengths: got", "the examples held out"],
    "task.length=1000000000": ["task.length: got 1000000000", "of memory that are free"],
    "model.hidden=1000000": ["model.hidden: got 1000000", "4,000,013,000,001 parameters"],
    "model.layers=10001": ["model.layers: got 10001", "from 1 to 10000"],
    "probe=full task.length=9000000 trainer.batch=1": ["task.length: got", "the Jacobians that"],
    "probe.per_decade=1e9": ["probe.per_decade: got 1000000000.0", "a whole number"],
    "probe.measure.adjoint.quantiles=[1,1]": ["quantiles: got [1, 1]", "each once"],
    "probe.measure.adjoint.quantiles=[]": ["quantiles: got []", "at least one"],
    "probe.measure.gate_saturation.low=1e30": ["gate_saturation.low: got 1e+30", "from 0 to 1"],
    "record.wandb.finish_timeout=1e30": ["record.wandb.finish_timeout: got 1e+30", "to 1e+06"],
    "trainer.eval_batch=${..seed}": ["trainer.eval_batch: got 0", "at least 1"],
    "~": ["command line: got", "Hydra says"],
    "trainer.batch=" + "1" * 5000: ["trainer.batch: got", "something shorter"],
    "~task=[]": ["task: got '[]'", "Hydra says"],
    "hydra.mode=foo": ["hydra.mode: got 'foo'", "RUN, MULTIRUN"],
    "record=[1,2]": ["record: got '[1,2]'", "default"],
    "--resolve": ["command line: got '--resolve'", "--cfg or --help"],
    "experiment=" + "x" * 400: ["experiment: got 'xxx", "(402 characters)"],
    "-m seed=range(1000000000)": ["seed: got 'range(1000000000)'", "100,000 jobs at most"],
    "-m seed=range(0,1,nan)": ["seed: got 'range(0,1,nan)'", "finite numbers"],
    "-m seed=interval(0,1)": ["seed: got 'interval(0,1)'", "hydra/sweeper=search"],
    "-m seed=1 hydra.sweeper.max_batch_size=0": ["max_batch_size: got 0", "at least 1, or null"],
    "blah": ["command line: got 'blah'", "key=value", "try: blah=VALUE"],
    "=3": ["command line: got '=3'", "key=value"],
    "trainer.steps = 3": ["got 'trainer.steps = 3'", "try: trainer.steps=3"],
    "probe=[adjoint": ["command line: got 'probe=[adjoint'", "'key=[1,2]'"],
    "--trainer.steps=3": ["without dashes", "try: trainer.steps=3"],
    "model=rnn,lstm": ["model: got 'rnn,lstm'", "python -m gradlab -m model=rnn,lstm"],
    "seed=range(3)": ["seed: got 'range(3)'", "python -m gradlab -m seed=range(3)"],
    "--config-dir=nowhere": ["nowhere' not found"],
    "--config-name=nope": ["primary config 'nope'"],
    "hydra.run.dir=/proc/nowhere/x": [
        "the run directory cannot be made",
        "/proc",
        "try: hydra.run.dir=FOLDER",
    ],
    "model=rnn probe=forget_product": ["probe: got 'forget_product'", "its gates: none", "try:"],
    "model=rnn probe=[adjoint,forget_product]": ["probe: got 'forget_product'", "SimpleRNN"],
    "model=rnn model.cell.activation_fn=tanhh": ["got 'tanhh'", "relu", "activation_fn=tanh\n"],
    "model=rnn +model.cell.foo=1": ["model.cell.foo: got 1", "the keys of SimpleRNN: activation"],
    "model=flax_lstm +model.cell.recurrent_kernel_init=gaussian": ["'gaussian'", "with _target_"],
    "experiment=digits task.length=65": ["task.length: got 65", "at most 64", "task.length=64"],
    "experiment=dates task.length=38": ["task.length: got 38", "at least 39", "task.length=39"],
    "experiment=sunspots task.length=300": ["task.length: got 300", "at most 216", "shorter"],
    "experiment=text task.max_characters=500": ["task.length: got 100", "at most 49", "longer"],
    "experiment=text task.path=nope.txt": ["task.path: got 'nope.txt'", "exists", "absolute"],
    "modle=rnn trainer.steps=3": ["modle: got 'rnn'", "try: model=rnn"],
}


@pytest.mark.parametrize("typed", TYPED)
def test_typed(refused, typed):
    arguments = [typed] if " = " in typed else typed.split()
    message = refused(*arguments)
    for words in TYPED[typed]:
        assert words in message


FILES = {
    "experiment=wrong_key": ["trainer.stepz: got 3", "log_every", "try: trainer.steps"],
    "experiment=wrong_model_key": ["model.hiden: got 3", "try: model.hidden"],
    "experiment=wrong_section": ["trainr: got {'steps': 3}", "try: trainer"],
    "experiment=wrong_group": ["modle (in experiment/wrong_group.yaml)", "try: model"],
    "experiment=wrong_option": ["model: got 'gruu'", "try: model=gru"],
    "experiment=wrong_yaml": ["experiment/wrong_yaml.yaml", "line 2", "expected ',' or ']'"],
    "experiment=wrong": ["experiment: got 'wrong'", "experiment=wrong_key"],
    "experiment=wrong_key modl.hidden=3": ["modl.hidden: got '3'", "try: model.hidden=3"],
    "model=wrong_carry": ["cell WrongCarry", "try: return (carry, y) from WrongCarry.__call__"],
    "model=wrong_arguments": ["got 'WrongArguments'", "hidden_features, in_features, rngs"],
    "model=a_function": ["got 'my_cells.a_function'", "a subclass of RNNCellBase"],
    "model=not_there": ["got 'my_cells.NotThere'", "no NotThere in my_cells"],
    "model=loud": ["model.cell: got 'loud'", "RuntimeError: no such size (my_cells.py, line"],
    "model=names": ["got 'OnlyByOtherNames'", "hidden_features, in_features"],
    "model=broken": ["got 'my_broken_file.Cell'", "a_package_that_is_not_there"],
}


@pytest.mark.parametrize("typed", FILES)
def test_files_of_the_user(refused, tmp_path, typed):
    for name, text in OWN.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    message = refused("--config-dir", "conf", *typed.split())
    for words in FILES[typed]:
        assert words in message


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "a file that is not empty"), (b"caf\xe9", "is not, at byte 3 (0xe9)")],
)
def test_text_that_cannot_be_read(refused, tmp_path, content, words):
    (tmp_path / "poem.txt").write_bytes(content)
    message = refused("experiment=text", "task.path=poem.txt")
    assert "task.path: got 'poem.txt'" in message
    assert words in message


def test_the_environment_of_wandb_is_checked_too(refused, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "foo")
    assert "record.wandb.mode: got 'foo'" in refused()


@pytest.mark.parametrize("arguments", [[], ["-m"]])
def test_a_disk_that_cannot_be_written_to_is_named(refused, tmp_path, arguments):
    """Told by a file where a folder is due, which stops the superuser too."""
    (tmp_path / "disk").write_text("")
    key = "hydra.sweep.dir" if arguments else "hydra.run.dir"
    message = refused(*arguments, f"{key}=disk/x")
    assert f"Not a directory: {tmp_path}/disk/x\n" in message
    assert f"try: {key}=FOLDER" in message


@pytest.mark.parametrize("launcher", ["basic", "population"])
def test_a_folder_that_cannot_be_made_amid_a_sweep(command, tmp_path, launcher):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "1").write_text("in the way")
    small = [*TINY, *QUIET, "probe=none", "model=feedforward"]
    line = ["-m", *small, "seed=1,2", "hydra.sweep.dir=s", f"hydra/launcher={launcher}"]
    done = command(*line)
    assert done.code == 1
    assert done.err.startswith(f"gradlab: cannot record to s: File exists: {tmp_path}/s/1\n")
    assert "trainer.resume=s\n" in done.err


def test_folders_that_were_there_stay(command, tmp_path):
    for name in ("outputs", "mine/run", "sweep/0"):
        (tmp_path / name).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert command("task.length=0").code == 2
    assert command("task.length=0", "hydra.run.dir=mine/run").code == 2
    assert command("task.length=0", "hydra.run.dir=mine/other/run").code == 2
    assert command("-m", "task.length=0,1", "hydra.sweep.dir=sweep").code == 2
    assert command("-m", "task.length=0,1", "hydra.sweep.dir=mine/sweep").code == 2
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "sign"),
    [(["hydra.run.dir=X"], "run.json"), (["-m", "seed=1,2", "hydra.sweep.dir=X"], "multirun.yaml")],
)
def test_a_run_is_never_overwritten(refused, tmp_path, arguments, sign):
    (tmp_path / "X" / ".hydra").mkdir(parents=True)
    for name in (sign, ".hydra/config.yaml", "arrays.zarr"):
        (tmp_path / "X" / name).write_text("old")
    message = refused(*arguments)
    assert "dir: got 'X'" in message
    assert "a folder that holds no run" in message
    assert "try: another folder" in message


def test_a_member_of_a_sweep_that_is_a_run_already_is_refused(command, tmp_path):
    (tmp_path / "X" / "0").mkdir(parents=True)
    (tmp_path / "X" / "0" / "run.json").write_text("old")
    done = command("-m", "seed=3", "hydra.sweep.dir=X")
    assert done.code == 2
    assert "job 0 (seed=3): hydra.sweep.dir: got 'X/0'" in done.err
    assert (tmp_path / "X" / "0" / "run.json").read_text() == "old"


def test_a_wrong_option_in_a_sweep_is_refused_before_its_siblings_start(refused):
    assert "try: model=lstm" in refused("-m", "model=rnn,lstn")
    assert "try: model=rnn,lstm" in refused("-m", "modle=rnn,lstm")


def test_a_sweep_of_refused_jobs_leaves_nothing(command, tmp_path):
    done = command("-m", "task.length=0,1")
    assert done.code == 2
    assert "job 0 (task.length=0): task.length: got 0" in done.err
    assert "job 1 (task.length=1): task.length: got 1" in done.err
    assert "gradlab: 2 jobs of this sweep were refused" in done.err
    assert not list(tmp_path.iterdir())
