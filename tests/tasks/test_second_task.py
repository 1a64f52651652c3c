"""A task of another package, from its file through a real search to the figures and the report.

``tests/tasks/ink.py`` is all there is of it. The processes of a search know it by an entry point, as they would know an
installed package's; this process by the registry.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml

from mixtune import evaluate, export
from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.regime import BatchShape, Budget, Mixture, Regime, published
from mixtune.runtime.process_group import SINGLE_PROCESS
from mixtune.search.space import Space
from mixtune.tasks.registry import TASKS
from mixtune.tracking.mlflow_reader import parent_of
from mixtune.training.run import Evaluation, Run, TrainingConfig
from tests.commands import module_of
from tests.ranks import on_ranks
from tests.tasks import ink

ROOT = Path(__file__).parents[2]
SECTION = {"kind": "ink", "dataset": "digits", "network": "fcn", "validation": 0.25, "samples": 400}
SPACE = {
    "study": "ink",
    "task": SECTION,
    "base": {"S": 8, "B": 32},
    "budget": {"epochs": 1},
    "evaluate": {"sizes": [8, 12], "reports": 2},
    "search": {"sizes": [4, 8, 12]},
    "published": ["fixed", "multiscale"],
    "fidelity": {"kind": "truncate"},
    "trials": 3,
    "resources": {"at_once": 1},
}
# Trained for an epoch, over seeds 0 to 4 and AVX-512, AVX2 and SSE4.1: 0.87 to 0.92 at 8 px, 0.77 to 0.81 at 12 px.
# A network that sees no ink has half of the share of what is none: below 0.42.
LEARNT = 0.6


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(TASKS, "ink", ink.PLACE)


def installed(folder):
    """The environment of a process for which a package adds the task: what pip leaves beside such a package."""
    info = folder / "ink-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ink\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[mixtune.tasks]\nink = {ink.PLACE}\n")
    packages = [str(folder), str(ROOT), *(p for p in sys.path if p.endswith("-packages"))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(packages)}


@pytest.fixture(scope="module")
def study(tmp_path_factory, empty_store):
    """A finished search: (its folder, what it printed)."""
    folder = tmp_path_factory.mktemp("ink")
    (folder / "ink.yaml").write_text(yaml.safe_dump(SPACE))
    (folder / "study").mkdir()
    empty_store(folder / "study")
    words = [sys.executable, "-m", "mixtune.search", "--space", "ink.yaml", "--out", "study"]
    environment = installed(tmp_path_factory.mktemp("packages"))
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "study", done.stdout


def analysis(name, study, folder, *flags):
    uri = f"sqlite:///{study}/mlflow.db"
    assert (
        module_of(f"analysis.{name}").main(["--study", "ink", "--tracking-uri", uri, "--out", str(folder), *flags]) == 0
    )


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_search_shows_its_words(study):
    folder, text = study
    assert "mIoU in % on the held-out images" in text
    assert "hypervolume of mIoU over log GMACs" in text
    assert "top-1" not in text
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best["training"]["task"]["kind"] == "ink"


def test_optuna_and_mlflow_hold_its_metrics_by_name(study):
    folder, _ = study
    from mixtune.search.paths import StudyPaths
    from mixtune.search.storage import open_storage
    from mixtune.tracking.mlflow_reader import stored

    trials = optuna.load_study(study_name="ink", storage=open_storage(StudyPaths(folder).storage_url)).trials
    assert [t.state.name for t in trials].count("COMPLETE") >= 2
    for trial in trials:
        for row in json.loads(trial.user_attrs["curve"]):
            assert list(row) == ["S", "gmacs", "miou", "pixel_accuracy", "loss"]
            assert trial.state.name != "COMPLETE" or row["miou"] > LEARNT
    uri = f"sqlite:///{folder}/mlflow.db"
    runs = list(stored(uri, "ink"))
    assert len(runs) == 3
    for run in runs:
        assert {"miou/S08", "miou/S12", "curve/miou", "curve/loss"} <= set(run.metrics)
        assert set(run.curve[8]) == {"gmacs", "miou", "pixel_accuracy", "loss"}
    assert parent_of(uri, "ink")[1]["task.kind"] == "ink"


def test_the_search_drew_the_front_in_its_own_words(study):
    folder, _ = study
    front = rows(folder / "figures" / "pareto.csv")
    assert {float(r["miou"]) > LEARNT for r in front} == {True}
    assert any(r["front"] == "True" for r in front)
    picture = (folder / "figures" / "pareto.svg").read_text()
    assert "mean IoU, %" in picture
    assert "top-1" not in picture


def test_the_sizes_figure_and_the_report_are_of_its_metric(study, tmp_path):
    folder, _ = study
    analysis("sizes", folder, tmp_path)
    assert {r["S"] for r in rows(tmp_path / "sizes.csv") if r["miou"]} == {"8", "12"}
    assert "mean IoU" in (tmp_path / "sizes.svg").read_text()
    analysis("report", folder, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Mean IoU against cost" in page
    assert "hypervolume of mIoU over log GMACs" in page
    assert "top-1" not in page
    assert "accuracy" not in page.partition("<body>")[2].replace("pixel_accuracy", "")


@pytest.mark.parametrize("name", ["compare", "efficiency", "timeline", "measure", "robustness"])
def test_the_other_figures_are_drawn_too(study, tmp_path, name):
    folder, _ = study
    uri = f"sqlite:///{folder}/mlflow.db"
    common = ["--study", "ink", "--tracking-uri", uri]
    if name == "measure":
        assert module_of("analysis.measure").main([*common, "--latency", "2"]) == 0
        analysis("pareto", folder, tmp_path, "--cost", "latency")
    elif name == "robustness":  # it measures no calibration, so it is drawn once corruptions were measured
        with pytest.raises(InputError, match=r"analysis\.measure"):
            analysis("robustness", folder, tmp_path)
        assert module_of("analysis.measure").main([*common, "--corruptions", "8"]) == 0
        analysis("robustness", folder, tmp_path)
        assert float(rows(tmp_path / "robustness.csv")[0]["corruption/noise"]) > 0
    else:
        analysis(name, folder, tmp_path, *(("fixed", "multiscale") if name == "compare" else ()))
        assert (tmp_path / f"{name}.svg").exists()


def test_the_winner_is_trained_evaluated_picked_by_name_and_exported(study, tmp_path, capsys):
    folder, _ = study
    from mixtune import train

    out = tmp_path / "winner"
    assert train.main(["--regime", str(folder / "best.yaml"), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "mIoU, %" in text
    assert "top-1" not in text
    curve = rows(out / "curve.csv")
    assert all(float(row["miou"]) > LEARNT for row in curve)
    assert evaluate.main(["--weights", str(out), "--corruptions", "8", "--out", str(tmp_path / "again")]) == 0
    assert "mIoU %" in capsys.readouterr().out
    again = rows(tmp_path / "again" / "curve.csv")
    assert [float(r["miou"]) for r in again] == pytest.approx([float(r["miou"]) for r in curve])
    words = ["--run", str(out), "--at-least", "pixel_accuracy 60 %", "--network", str(tmp_path / "net")]
    assert export.main(words) == 0
    assert "at least pixel_accuracy 60 %" in capsys.readouterr().out
    about = yaml.safe_load((tmp_path / "net" / "deploy.yaml").read_text())
    assert about["judged"]["miou"] > LEARNT
    assert about["output"] == "logits, [N, 2, H, W]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": SECTION | {"scal": [0.5, 1]}}, r"unknown key task\.scal; did you mean 'scale'"),
        ({"task": SECTION | {"augment": {}}}, r"unknown key task\.augment"),
        ({"task": SECTION | {"kind": "inc"}}, r"task.*'inc'.*'ink'"),
        ({"score": {"measure": "top1", "S": 8}}, r"score\.measure.*miou.*at_size"),
        ({"objectives": ["score", "ece"], "pruner": {"name": "none"}}, r"objectives.*'ece'"),
    ],
)
def test_a_mistake_in_its_section_is_one_sentence(change, message):
    with pytest.raises(InputError, match=message):
        parse(SPACE | change, Space, "f")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": {"mixup": 0.2}}, r"f: recipe\.mixup"),
        ({"search": {"sizes": [4, 8, 12], "recipe": {"label_smoothing": [0.0, 0.1]}}}, r"f: recipe\.label_smoothing"),
        ({"search": {"sizes": [5, 8]}, "published": ["fixed"]}, r"f: search\.sizes: 5 px .*fcn"),
    ],
)
def test_what_it_cannot_train_is_refused_before_a_search(change, message):
    from mixtune.profiling.checks import check_sizes

    with pytest.raises(InputError, match=message):
        check_sizes(parse(SPACE | change, Space, "f"), "f")


def test_statistics_are_not_recalibrated_where_the_task_cannot():
    config = parse(
        {k: SPACE[k] for k in ("task", "budget")} | {"evaluate": {"sizes": [8], "recalibrate": {}}}, TrainingConfig, "f"
    )
    with pytest.raises(InputError, match=r"evaluate\.recalibrate"):
        Run.prepare(published("fixed", BatchShape(8, 32), [8], 2), config)


def test_objectives_of_its_own_have_their_directions():
    space = parse(SPACE | {"objectives": ["score", "loss", "pixel_accuracy"]}, Space, "f")
    assert space.directions == ["maximize", "minimize", "maximize"]


def train_and_judge(group):
    """The loss of a run, which all ranks share, and the curves of it and of a network that nobody trained."""
    TASKS["ink"] = ink.PLACE  # of this process
    regime = Regime.of(BatchShape(8, 9), [Mixture.of([BatchShape(8, 9), BatchShape(8, 3, 3), BatchShape(12, 5)])])
    config = ink.InkConfig("digits", "fcn", kind="ink", samples=120, validation=0.25)
    training = TrainingConfig(config, Budget(1), Evaluation((8, 12), 1), threads=1, device="cpu")
    run = Run.prepare(regime, training, group=group)
    (report,) = run.reports()
    return report.loss, report.curve.rows(), run.task.evaluate(run.task.network(0), (8, 12)).rows()


def test_several_ranks_report_the_same_and_judge_as_one_process():
    one, two = on_ranks(2, train_and_judge)
    assert one == two
    *_, alone = train_and_judge(SINGLE_PROCESS)
    for mine, whole in zip(one[-1], alone, strict=True):
        assert mine == pytest.approx(whole, rel=1e-5)
