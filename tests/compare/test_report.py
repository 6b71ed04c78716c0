"""What of a comparison arrives at a W&B server, and what remains when there is none."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from markdown_it import MarkdownIt

from gradlab.compare.recorded import recorded
from gradlab.compare.report import NotSent, publish, specification
from gradlab.compare.report.build import markdown
from gradlab.compare.report.content import content
from gradlab.compare.report.library import reports, workspaces
from gradlab.compare.runs import runs_in
from gradlab.errors import BadInput
from gradlab.record.directory import RunDirectory
from gradlab.record.wandb.sink import WandbSink
from tests.compare.recordings import record_run, record_sweep
from tests.record.synthetic import describe, finished, make_row
from tests.record.wandb_server import ENTITY, KEY, WandbServer, isolate

HEADLINE = SimpleNamespace(title="The GRU carries it", lines=("It reaches 37 steps.", "So it is."))
STEPS = 40

# W&B leaves the temporary folders of artifacts to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
    pytest.mark.usefixtures("tidy"),
]


@pytest.fixture(scope="module")
def one_server(tmp_path_factory):
    wandb.teardown()  # it reads the environment once
    with pytest.MonkeyPatch.context() as patch, WandbServer() as server:
        isolate(patch, tmp_path_factory.mktemp("home"))
        patch.setenv("WANDB_BASE_URL", server.url)
        patch.setenv("WANDB_API_KEY", KEY)
        yield server
        wandb.teardown()


@pytest.fixture
def server(one_server):
    """A server that W&B finds by the environment, empty."""
    for kept in (one_server.runs, one_server.artifacts, one_server.views, one_server.projects):
        kept.clear()
    one_server.unknown.clear()
    one_server.forbidden.clear()
    yield one_server
    one_server.refuse_key = False
    one_server.stop()
    one_server.start()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """An RNN, an LSTM and a GRU with two seeds each."""
    return record_sweep(tmp_path_factory.mktemp("sweep"), seeds=(0, 1))


def read(*folders):
    return recorded(runs_in(*folders))


@pytest.fixture(scope="module")
def compared(sweep):
    """The runs of the sweep, read once."""
    return read(sweep)


def ids(folder):
    """The ids as the run directories have them."""
    infos = [json.loads(path.read_text()) for path in Path(folder).rglob("run.json")]
    return {info["id"] for info in infos}


def blocks(spec, type):
    return [block for block in spec["blocks"] if block["type"] == type]


def text_of(block):
    """All that a block shows as text."""
    return block["text"] if "text" in block else "".join(map(text_of, block["children"]))


def panels(spec):
    """Every panel of a report or a workspace, in order."""
    if "blocks" in spec:
        grids = blocks(spec, "panel-grid")
        return [p for grid in grids for p in grid["metadata"]["panelBankSectionConfig"]["panels"]]
    return [p for part in spec["section"]["panelBankConfig"]["sections"] for p in part["panels"]]


def runsets(spec):
    if "blocks" in spec:
        return [rs for grid in blocks(spec, "panel-grid") for rs in grid["metadata"]["runSets"]]
    return spec["section"]["runSets"]


def keys_of(panel):
    """The metrics of a panel: those over training, and those of the summary."""
    config = panel["config"]
    match panel["viewType"]:
        case "Run History Line Plot":
            return set(config["metrics"]), set()
        case "Bar Chart" | "Scalar Chart":
            return set(), set(config["metrics"])
        case "Scatter Plot":
            axes = {config["xAxis"], config["yAxis"]}
            return set(), {axis.removeprefix("summary:") for axis in axes}
        case "Parallel Coordinates Plot":
            names = [column["accessor"] for column in config["columns"]]
            return set(), {n.removeprefix("summary:") for n in names if n.startswith("summary:")}
        case "Media Browser":
            return set(), set(config["mediaKeys"])
        case "Weave":
            return set(), {config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]}
    return set(), set()


def lines_of(spec):
    return {tuple(p["config"]["metrics"]) for p in panels(spec) if "Line" in p["viewType"]}


# --- what the runs logged and what the panels ask for ---------------------------------------------


def record_both(folder, model, seed, layers=(0, "0 backward")):
    """A run as a directory and, by the real sink, on the server."""
    plain = describe(T=16, steps=STEPS, layers=list(layers), lstm=model == "lstm")
    settings = {"wandb": {"mode": "online", "project": "elsewhere", "chart": None}}
    description = dataclasses.replace(
        plain,
        id=f"{model}{seed}",
        config={**plain.config, "seed": seed, "record": settings},
        facts={**plain.facts, "model": model},
    )
    folder.mkdir(parents=True)
    kept = [RunDirectory(folder)]
    kept += [WandbSink(folder, mode="online", project="elsewhere", code=False, arrays=False)]
    for sink in kept:
        sink.open(description)
    for step in range(0, STEPS, 4):
        for sink in kept:
            sink.log(make_row(description, step))
    for sink in kept:
        sink.close(finished())


def test_every_panel_asks_for_what_the_runs_logged(server, tmp_path):
    with ThreadPoolExecutor() as both:  # most of it is waiting for W&B
        done = [both.submit(record_both, tmp_path / name, name, 0) for name in ("lstm", "rnn")]
    assert [one.exception() for one in done] == [None, None]
    published = publish(read(tmp_path), HEADLINE, tmp_path)

    over_training = {key for run in server.runs.values() for row in run.history for key in row}
    at_the_end = {key for run in server.runs.values() for key in run.summary}
    for view in server.views:
        assert view.project == "elsewhere"
        asked = [keys_of(panel) for panel in panels(view.spec)]
        assert set.union(*(lines for lines, _ in asked)) <= over_training
        assert set.union(*(final for _, final in asked)) <= at_the_end
        for runset in runsets(view.spec):
            (only,) = runset["filters"]["filters"]
            assert (only["key"], only["op"]) == ({"section": "run", "name": "name"}, "IN")
            assert set(only["value"]) == set(server.runs)
            (group,) = runset["grouping"]
            outer, value, inner = group["name"].split(".")
            models = [run.config[outer][value][inner] for run in server.runs.values()]
            assert sorted(models) == ["lstm", "rnn"]
    # and of what they logged nothing that a comparison is about is left out
    spec = server.view("runs").spec
    asked = set.union(*(lines for lines, _ in map(keys_of, panels(spec))))
    wanted = re.compile(r"adj_[hc]/.*|forget_product/.*|.*/loss|.*/accuracy|memory_.*|adjoint_.*")
    assert {key for key in over_training if wanted.fullmatch(key)} == asked
    assert {key for key in at_the_end if key.startswith("heatmap/")} <= set.union(
        *(final for _, final in map(keys_of, panels(spec)))
    )
    assert server.unknown == []
    assert None not in (published.report, published.workspace)


# --- what arrives ---------------------------------------------------------------------------------


def test_the_report_arrives_with_headline_panels_runs_and_commands(
    server, sweep, compared, tmp_path
):
    published = publish(compared, HEADLINE, tmp_path)
    view = server.view("runs")
    assert (view.title, view.entity, view.project) == (HEADLINE.title, ENTITY, "gradlab")
    assert view.description == "6 runs compared by gradlab"
    words = [text_of(block) for block in blocks(view.spec, "paragraph")]
    assert words[1:3] == list(HEADLINE.lines)  # the first is W&B's own, and empty

    for name in ("adj_h", "adj_c", "forget_product", "long_jacobian"):
        assert tuple(f"{name}/layer_0/lag_{2**k:05d}" for k in range(5)) in lines_of(view.spec)
    singles = {"adjoint_slope/layer_0", "memory_horizon/layer_0", "train/loss", "val/loss"}
    singles |= {"lyapunov_exponent/layer_0/index_0", "val/accuracy", "adj_h/layer_0/lag_00016"}
    assert {(key,) for key in singles} <= lines_of(view.spec)
    for panel in panels(view.spec):
        if "Line" in panel["viewType"]:
            config = panel["config"]
            assert (config["xAxis"], config.get("yLogScale")) == ("train_step", None)
            assert (config["groupBy"], config["groupAgg"]) == ("facts.value.model", "mean")
            assert config["groupArea"] == "minmax"

    kinds = {panel["viewType"] for panel in panels(view.spec)}
    assert kinds == {
        "Run History Line Plot",
        "Bar Chart",
        "Scalar Chart",
        "Scatter Plot",
        "Parallel Coordinates Plot",
        "Run Comparer",
        "Media Browser",
        "Weave",
    }
    bars = [p["config"]["metrics"] for p in panels(view.spec) if p["viewType"] == "Bar Chart"]
    assert ["test/loss"] in bars
    assert ["memory_horizon/layer_0"] in bars
    media = [p["config"]["mediaKeys"] for p in panels(view.spec) if "Media" in p["viewType"]]
    assert ["heatmap/adj_h/layer_0"] in media
    for runset in runsets(view.spec):
        assert set(runset["filters"]["filters"][0]["value"]) == ids(sweep)
        assert runset["grouping"] == [{"section": "config", "name": "facts.value.model"}]
        assert "project" not in runset  # so it is the report's
    (code,) = blocks(view.spec, "code-block")
    commands = text_of(code).splitlines()
    assert commands[0] == "python -m gradlab model=rnn seed=0"
    assert len(commands) == 6
    address = rf"{server.url}/{ENTITY}/gradlab/reports/The-GRU-carries-it--\w+"
    assert re.fullmatch(address, published.report)


def test_the_workspace_arrives_with_the_same_panels_and_runs(server, compared, tmp_path):
    published = publish(compared, HEADLINE, tmp_path)
    view, report = server.view("project-view"), server.view("runs")
    assert (view.title, view.entity, view.project) == (HEADLINE.title, ENTITY, "gradlab")
    own = [p for p in panels(view.spec) if p["viewType"] != "Markdown Panel"]
    assert [p["config"] for p in own] == [p["config"] for p in panels(report.spec)]
    (runset,) = runsets(view.spec)
    assert runset["filters"] == runsets(report.spec)[0]["filters"]
    assert runset["grouping"] == runsets(report.spec)[0]["grouping"]
    settings = view.spec["section"]["settings"]
    assert (settings["xAxis"], settings["shouldAutoGeneratePanels"]) == ("train_step", False)
    first = view.spec["section"]["panelBankConfig"]["sections"][0]["panels"][0]
    assert HEADLINE.title in first["config"]["value"]
    name = view.name.removeprefix("nw-").removesuffix("-v")
    assert published.workspace == f"{server.url}/{ENTITY}/gradlab?nw={name}"


def test_the_library_itself_reads_both_back_from_their_addresses(server, sweep, compared, tmp_path):
    published = publish(compared, HEADLINE, tmp_path)
    report = reports().Report.from_url(published.report)
    again = workspaces().Workspace.from_url(published.workspace)
    assert report.title == again.name == HEADLINE.title
    grids = [block for block in report.blocks if isinstance(block, reports().PanelGrid)]
    assert grids[0].panels[0].x == reports().Metric("train_step")
    assert grids[0].panels[0].groupby == reports().Config("facts.model")
    assert set(re.findall(r"'(\w+)'", grids[0].runsets[0].filters)) == ids(sweep)
    assert grids[0].runsets[0].filters == again.runset_settings.filters
    assert again.sections[0].name == "In words"


def test_another_owner_and_project_can_be_named(server, compared, tmp_path, monkeypatch):
    publish(compared, HEADLINE, tmp_path, entity="a-team", project="other")
    monkeypatch.setenv("WANDB_ENTITY", "b-team")
    published = publish(compared, HEADLINE, tmp_path)
    owners = [(view.entity, view.project) for view in server.views]
    assert owners == [("a-team", "other")] * 2 + [("b-team", "gradlab")] * 2
    assert server.projects == {"a-team": ["other"], "b-team": ["gradlab"]}
    assert "/b-team/gradlab/" in published.report
    assert json.loads(published.files[0].read_text())["entity"] == "b-team"


def test_no_two_panels_lie_on_each_other_or_share_a_name(compared):
    report, workspace = specification(compared, HEADLINE, ENTITY).as_json()
    for grid in blocks(report["spec"], "panel-grid"):
        cells = []
        for panel in grid["metadata"]["panelBankSectionConfig"]["panels"]:
            x, y, w, h = (panel["layout"][side] for side in "xywh")
            assert x + w <= 24
            cells += [(x + i, y + j) for i in range(w) for j in range(h)]
        assert len(cells) == len(set(cells))
    for view in (report, workspace):
        names = [panel["__id__"] for panel in panels(view["spec"])]
        assert len(names) == len(set(names))


# --- offline --------------------------------------------------------------------------------------


def test_offline_the_files_hold_what_would_be_sent(server, compared, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        published = publish(compared, HEADLINE, tmp_path)
    assert (published.report, published.workspace, server.views) == (None, None, [])
    assert [path.name for path in published.files] == ["wandb_report.json", "wandb_workspace.json"]
    assert "WANDB_API_KEY" in published.words[-1]
    written = [json.loads(path.read_text()) for path in published.files]
    publish(compared, HEADLINE, tmp_path)
    for view in written:
        sent = server.view(view["type"])
        assert view["spec"] == sent.spec
        assert (view["displayName"], view["project"]) == (sent.title, sent.project)
        assert view["description"] == sent.description


def test_without_an_account_nothing_is_sent_and_online_says_so(
    server, compared, tmp_path, monkeypatch
):
    monkeypatch.delenv("WANDB_API_KEY")
    wandb.teardown()
    try:
        published = publish(compared, HEADLINE, tmp_path)
        assert published.report is None
        assert all(path.exists() for path in published.files)
        monkeypatch.setenv("WANDB_MODE", "online")
        with pytest.raises(NotSent, match="no account here"):
            publish(compared, HEADLINE, tmp_path)
        assert server.views == []
    finally:
        monkeypatch.undo()
        wandb.teardown()


def test_runs_that_wait_for_upload_are_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    sweep = record_sweep(tmp_path / "a sweep", models=("rnn",), seeds=(0, 1, 2))
    waiting = sweep / "0" / "wandb" / "offline-run-20261125_120000-abc"
    waiting.mkdir(parents=True)
    synced = sweep / "1" / "wandb" / "offline-run-20261125_120000-def"
    synced.mkdir(parents=True)
    (synced / "run-def.wandb.synced").touch()
    shown = content(read(sweep), HEADLINE)
    assert shown.ids[:2] == ("abc", "def")  # W&B's own, as an agent gives them
    (command,) = shown.uploads
    assert command.startswith(f"cd '{sweep}/0' && ")
    assert command.endswith(f" sync wandb/{waiting.name}")
    words = publish(read(sweep), HEADLINE, tmp_path).words
    assert any(command in line for line in words)

    id = json.loads((sweep / "2" / "run.json").read_text())["id"]
    (sweep / "2" / "wandb" / f"offline-run-20261125_120000-{id}-offline").mkdir(parents=True)
    published = publish(read(sweep), HEADLINE, tmp_path)
    script = published.files[-1]
    assert any(f"sh {script}" in line for line in published.words)
    lines = script.read_text().splitlines()
    assert f" sync --id {id} wandb/" in lines[2]
    subprocess.run(["sh", "-n", str(script)], check=True)


# --- trouble --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("down", "nothing answers at http://127"),
        ("refused", "invalid API key"),
        ("no report", "did not take the report: .*permission denied"),
        ("no workspace", "did not take the workspace: .*permission denied.*the report alone"),
    ],
)
def test_trouble_is_one_message_and_the_files_are_there(server, compared, tmp_path, trouble, said):
    if trouble == "down":
        server.stop()
    server.refuse_key = trouble == "refused"
    server.forbidden = {"no report": {"upsertView"}, "no workspace": {"UpsertView2"}}.get(
        trouble, set()
    )
    with pytest.raises(NotSent, match=said) as caught:
        publish(compared, HEADLINE, tmp_path)
    assert "Traceback" not in str(caught.value)
    for path in caught.value.files:
        assert json.loads(path.read_text())["spec"]
    assert str(caught.value.files[0]) in str(caught.value)


def test_the_missing_package_is_named_with_what_installs_it(compared, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(BadInput, match=re.escape("pip install 'gradlab[reports]'")):
        specification(compared, HEADLINE)


def test_runs_of_several_projects_are_refused_unless_one_is_named(tmp_path):
    for number, project in enumerate(("one", "two")):
        folder = record_run(tmp_path / str(number), seed=number)
        change(folder, project=project)
    with pytest.raises(BadInput, match="one W&B project"):
        content(read(tmp_path), HEADLINE)
    assert content(read(tmp_path), HEADLINE, project="three").project == "three"


def test_runs_that_w_and_b_never_had_are_left_out_with_a_note(tmp_path):
    change(record_run(tmp_path / "0"), mode="disabled")
    with pytest.raises(BadInput, match="mode=disabled"):
        content(read(tmp_path), HEADLINE)
    record_run(tmp_path / "1", seed=1)
    bad = record_run(tmp_path / "2", seed=2)
    change(bad, id="a'] or Metric('ID') != ['b")
    shown = content(read(tmp_path), HEADLINE)
    assert set(shown.ids) == ids(tmp_path / "1")
    notes = " ".join(shown.notes)
    assert "Run 0 is not shown" in notes
    assert "Run 2 is not shown" in notes


def change(folder, id=None, **settings):
    """Other settings under ``record.wandb`` in run.json, or another id."""
    path = folder / "run.json"
    info = json.loads(path.read_text())
    info["config"]["record"] = {"wandb": {"mode": "offline", "project": "gradlab", **settings}}
    info["id"] = id or info["id"]
    path.write_text(json.dumps(info))


# --- what is shown --------------------------------------------------------------------------------


def test_only_what_was_recorded_has_a_panel_and_the_rest_a_note(tmp_path):
    record_run(tmp_path / "0", "rnn", only={"train/loss", "adj_h_log10"}, close=False)
    report, _ = specification(read(tmp_path), HEADLINE, ENTITY).as_json()
    every = tuple(f"adj_h/layer_0/lag_{2**k:05d}" for k in range(5))
    assert lines_of(report["spec"]) == {every, every[-1:], ("train/loss",)}
    items = blocks(report["spec"], "list")[0]["children"]
    note = text_of(items[0])
    for name in ("adjoint ∂ℓ/∂c", "forget product", "λ₁"):
        assert name in note
    assert "∂ℓ/∂h" not in note


def test_a_run_that_goes_on_has_lines_but_no_pictures_yet(tmp_path):
    directory = record_run(tmp_path / "0", keep_open=True)
    try:
        shown = content(read(tmp_path), HEADLINE)
    finally:
        directory.close(finished())
    names = [section.name for section in shown.sections]
    assert "How the gradient travels back in time" in names
    assert not any("Heatmaps" in name for name in names)
    assert "come at a run's end: 1 of 1." in " ".join(shown.notes)
    assert any("Heatmaps" in one.name for one in content(read(tmp_path), HEADLINE).sections)


def test_exact_zeros_are_no_values_and_their_lags_have_no_line(tmp_path):
    folder = tmp_path / "0"
    description = dataclasses.replace(describe(T=32, steps=40), id="zeros")
    directory = RunDirectory(folder)
    directory.open(description)
    for step in (0, 20):
        directory.log(make_row(description, step, zero_beyond=5))
    directory.close(finished())
    shown = content(read(folder), HEADLINE)
    adjoint = shown.sections[0].panels[0]
    assert adjoint.keys == tuple(f"adj_h/layer_0/lag_{lag:05d}" for lag in (1, 2, 4))


def test_runs_are_grouped_by_the_settings_that_differ_but_the_seed(tmp_path):
    for number, (model, hidden, seed) in enumerate(
        [("lstm", 8, 0), ("lstm", 16, 0), ("gru", 8, 0), ("gru", 16, 1)]
    ):
        said = [f"model={model}", f"model.hidden={hidden}", f"seed={seed}"]
        record_run(tmp_path / str(number), model, seed, hidden=hidden, said=said)
    report, workspace = specification(read(tmp_path), HEADLINE, ENTITY).as_json()
    for view in (report, workspace):
        for runset in runsets(view["spec"]):
            names = [key["name"] for key in runset["grouping"]]
            assert names == ["facts.value.model", "model.value.hidden"]
    for panel in panels(report["spec"]):
        assert "groupBy" not in panel["config"]  # which takes one key; the table of runs has both
    (parallel,) = [p for p in panels(report["spec"]) if "Parallel" in p["viewType"]]
    axes = [column["accessor"] for column in parallel["config"]["columns"]]
    assert axes[:2] == ["config:facts.value.model", "config:model.value.hidden"]
    assert "summary:test/loss" in axes


def test_seeds_alone_are_one_group_by_model(tmp_path):
    record_sweep(tmp_path, models=("gru",), seeds=(0, 1))
    shown = content(read(tmp_path), HEADLINE)
    assert shown.grouping == ("facts.model",)


def test_each_layer_has_its_lines_up_to_four(tmp_path):
    record_run(tmp_path / "0", layers=(0, 1, 2, 3, 4))
    shown = content(read(tmp_path), HEADLINE)
    keys = {panel.keys[0].split("/lag")[0] for panel in shown.sections[0].panels}
    assert {key for key in keys if key.startswith("adj_h")} == {
        f"adj_h/layer_{k}" for k in range(4)
    }
    assert "Of 5 layers the first 4 are shown." in shown.notes


def test_the_registered_chart_draws_the_table_vanishing(tmp_path):
    change(record_run(tmp_path / "0"), chart="my-team/gradlab-vanishing-curve")
    report, _ = specification(read(tmp_path), HEADLINE, ENTITY).as_json()
    (chart,) = [p["config"] for p in panels(report["spec"]) if p["viewType"] == "Vega2"]
    assert chart["panelDefId"] == "my-team/gradlab-vanishing-curve"
    columns = ("lag", "train_step", "series", "log10")
    assert chart["fieldSettings"] == {column: column for column in columns}
    (query,) = chart["userQuery"]["queryFields"]
    (table,) = [field for field in query["fields"] if field["name"] == "summaryTable"]
    assert table["args"][0]["value"] == "vanishing_table"  # as wandb.plot_table names it


# --- names are data -------------------------------------------------------------------------------


class _Text(HTMLParser):
    """The text of a page, and its tags."""

    def __init__(self, page):
        super().__init__()
        self.text, self.tags = "", set()
        self.feed(page)

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)


EVIL = [
    "<script>alert(1)</script>",
    "[a](http://b.c) ![d](e) www.f.g",
    "# *h* _i_ `j` ~~k~~ |l|m| $n$ &amp; 1. - + > \\o {p}",
    "T=100: 10^-3.5 ± 0.1, ∂ℓ/∂h λ₁ “quoted”",
]


@pytest.mark.parametrize("text", EVIL)
def test_markdown_shows_any_text_letter_by_letter(text):
    for kind in ("commonmark", "gfm-like"):
        page = _Text(MarkdownIt(kind, {"linkify": False}).render(markdown(text)))
        assert page.text.strip() == text
        assert page.tags == {"p"}


def test_a_run_with_markup_for_a_name_arrives_as_text(server, tmp_path):
    name = "<script>alert(1)</script> *b* [c](http://d.e) ${f} = é"
    folder = record_run(tmp_path / "0", said=[f"+note={name}", "seed=0"], name=name)
    change(folder, id="with-markup")
    record_run(tmp_path / "1", seed=1, said=["+note=plain", "seed=1"])
    headline = SimpleNamespace(title=f"{name}: better than the rest", lines=[f"{name}\nhas it"])
    published = publish(read(tmp_path), headline, tmp_path)

    report, workspace = server.view("runs"), server.view("project-view")
    assert report.title == f"{name}: better than the rest"
    words = [text_of(block) for block in blocks(report.spec, "paragraph")]
    assert f"{name} has it" in words
    assert name in text_of(blocks(report.spec, "code-block")[0])
    assert blocks(report.spec, "markdown-block") == []
    marked = [p["config"]["value"] for p in panels(workspace.spec) if "Mark" in p["viewType"]]
    page = _Text(MarkdownIt().render(marked[0]))
    assert name in page.text
    assert page.tags <= {"p", "strong"}
    assert "script" not in _Text(MarkdownIt().render("\n\n".join(marked))).tags
    assert re.fullmatch(r"[\w:/.-]+", published.report)
    assert published.report.startswith(f"{server.url}/{ENTITY}/gradlab/reports/script-alert-1")


def test_a_title_too_long_for_w_and_b_is_cut_and_whole_below(compared):
    headline = SimpleNamespace(title="word " * 60, lines=[])
    report, workspace = specification(compared, headline, ENTITY).as_json()
    assert len(report["displayName"]) == 128
    assert headline.title.strip() in [text_of(b) for b in blocks(report["spec"], "paragraph")]
    assert len(workspace["displayName"]) <= 128
