"""The chain as a user drives it: real Ray, Optuna storage and MLflow store, in a folder with a space in its name."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import module_of

ROOT = Path(__file__).parents[1]


def command(*args, cwd=ROOT, interpreter=sys.executable):
    packages = [str(ROOT), *(p for p in sys.path if p.endswith("-packages"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(packages)}
    words = [str(interpreter), "-m", *map(str, args)]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=240, env=environment)


@pytest.fixture(scope="module")
def study(tmp_path_factory, empty_store):
    """A finished tiny study: (its folder, what the search printed)."""
    import yaml

    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("my studies")
    one = {"resources": {"at_once": 1}}  # every worker that is started loads torch anew
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY | one))
    # Even the interpreter lies in a folder with a space, as in an environment built inside such a checkout.
    interpreter = tmp_path_factory.mktemp("my environment") / "python"
    interpreter.symlink_to(Path(sys.executable).resolve())
    (folder / "my study").mkdir()
    empty_store(folder / "my study")
    done = command("mixtune.search", "--space", "tiny.yaml", "--out", "my study", cwd=folder, interpreter=interpreter)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "my study", done.stdout


def printed_command(text, title):
    line = re.search(rf"^{title}.*\n  (.*)$", text, re.MULTILINE)[1]
    return shlex.split(line)


def run_printed(words, cwd):
    at = words.index("-m")
    return command(*words[at + 1 :], cwd=cwd)


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Runs a printed command in this process, which has the imports that a new one takes seconds for; what it says."""

    def run(words, cwd):
        at = words.index("-m")
        monkeypatch.chdir(cwd)
        assert module_of(words[at + 1]).main(words[at + 2 :]) == 0
        return capsys.readouterr().out

    return run


def test_the_search_prints_readable_lines_and_a_table(study):
    _, text = study
    assert re.search(r"#0 +fixed +start +8x32 100%", text)
    assert re.search(r"#1 +multiscale +\d+ % +0\.\d{4} .*4x128 33% · 8x32 33% · 12x14 33%", text)
    assert re.search(r"#0 +fixed +done +0\.\d{4} +0\.\d{4} #0", text)
    assert re.search("top-1 in %.*held-out", text)
    assert "Traceback" not in text


def test_everything_lies_in_the_study_folder(study):
    folder, _ = study
    names = {p.name for p in folder.iterdir()}
    assert {"space.yaml", "study.journal", "mlflow.db", "artifacts", "trials", "figures", "best.yaml"} <= names
    assert {p.name for p in folder.parent.iterdir()} == {"tiny.yaml", "my study"}
    assert (folder / "trials" / "0000" / "weights.safetensors").exists()


def test_optuna_and_mlflow_hold_the_same_trials(study):
    import optuna
    from mlflow import MlflowClient

    from mixtune.search.paths import StudyPaths
    from mixtune.search.storage import open_storage

    folder, _ = study
    trials = optuna.load_study(study_name="tiny", storage=open_storage(StudyPaths(folder).storage_url)).trials
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("mixtune")
    runs = client.search_runs([experiment.experiment_id])
    states = {
        r.data.tags["mixtune.trial"]: r.data.tags["mixtune.state"] for r in runs if "mixtune.trial" in r.data.tags
    }
    assert states == {str(t.number): t.state.name for t in trials}
    assert len(trials) == 4
    (parent,) = (r for r in runs if r.data.tags["mixtune.kind"] == "study")
    figures = {a.path for a in client.list_artifacts(parent.info.run_id, "figures")}
    assert figures == {"figures/pareto.png", "figures/pareto.svg", "figures/pareto.csv"}


def test_the_printed_training_command_gives_the_trials_score_exactly(study, monkeypatch, run_here):
    import optuna

    from mixtune.search.paths import StudyPaths
    from mixtune.search.storage import open_storage

    folder, text = study
    best = optuna.load_study(study_name="tiny", storage=open_storage(StudyPaths(folder).storage_url)).best_value
    for name in ("ray", "optuna", "mlflow", *(f"mixtune.{p}" for p in ("search", "execution", "tracking", "study"))):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails now: training needs none of them
    printed = run_here(printed_command(text, "train the best regime"), folder.parent)
    assert re.search(rf"^score +{re.escape(repr(best))}\b", printed, re.MULTILINE)


def test_the_printed_figure_command_draws_the_same_table(study, run_here):
    folder, text = study
    table = folder / "figures" / "pareto.csv"
    before = table.read_text()
    table.unlink()
    run_here(printed_command(text, "draw the figures"), folder.parent)
    assert table.read_text() == before


def test_the_printed_command_on_a_finished_study_says_so(study, run_here):
    folder, text = study
    words = printed_command(text, "add trials")
    words[words.index("--trials") + 1] = "4"
    again = run_here(words, folder.parent)
    assert re.search(r"\ball\b.*\b4 trials\b", again)
    assert not re.search(r"^.*#\d.* start\b", again, re.MULTILINE)


@pytest.mark.slow
def test_the_printed_command_adds_trials(study):
    folder, text = study
    words = printed_command(text, "add trials")
    words[words.index("--trials") + 1] = "5"
    more = run_printed([*words, "--resume"], folder.parent)
    assert more.returncode == 0, more.stderr
    assert re.search(r"\btiny\b.*\b4 of 5 trials\b", more.stdout)
    assert re.search(r"#4 .* (done|pruned) ", more.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space", "nothing.yaml"], r"nothing\.yaml"),
        (["--space", "{space}", "--set", "task.netwrok=x"], r"space\.yaml: .*\btask\.netwrok\b.*'network'"),
        (["--space", "{space}", "--set", "task.network=resnet1000"], r"task\.network: .*'resnet1000'"),
        (["--space", "{space}", "--set", "search.sizes=[4, 8, 10, 12]"], r"search\.sizes: 10 px\b"),
        (["--space", "{space}", "--set", "base.B=500"], r"base: .*\b8x500\b.*\b500\b.*\b300\b"),
        (["--space", "{space}", "--set", "base.B=110"], r"\b4 px\b.*\bsplit 1\b.*\b440\b"),
        (
            ["--space", "{space}", "--set", "task.dataset=folder", "--set", "task.data=/nowhere"],
            r"task\.data: .*/nowhere\b.*\btrain/",
        ),
        (["--space", "{space}", "--set", "task.dataset=imagenet"], r"task\.data: .*\btrain/"),
        (["--space", "{space}", "--set", "resources.gpus=8"], r"resources\.gpus: .*\b8 GPUs\b"),
        (["--space", "{space}", "--set", "resources.cpus=999"], r"resources\.cpus: .*\b999 CPU"),
        (["--space", "{space}", "--set", "budget.epochs=0.01"], r"\b0\.01 epochs\b"),
        (
            ["--space", "{space}", "--set", "resources.folds_at_once=2"],
            r"resources\.folds_at_once\b.*\b2\b.*folds, 1\b",
        ),
        (["--space", "{space}", "--set", "pruner.name=hlaving"], "'hlaving'.*'halving'"),
        (["--space", "{space}", "--out", "{file}/x"], r"--out .*space\.yaml/x"),
        (["--space", "{space}", "--tracking-uri", "http://127.0.0.1:9"], r"http://127\.0\.0\.1:9\b.*MLflow"),
        (["--space", "{space}", "--storage", "sqlite:////nowhere/s.db"], r"sqlite:////nowhere/s\.db\b"),
        (["--space", "{space}", "--resume"], "'tiny'.*--resume"),
        (
            ["--space", "{space}", "--storage", "mysql://me:hunter2@127.0.0.1:9/x"],
            r"mysql://me:\*\*\*@127\.0\.0\.1:9/x\b",
        ),
        (["--spaec", "x"], r"mixtune\.search --help"),
    ],
)
def test_bad_input_is_one_sentence_exit_code_two_and_nothing_written(
    tmp_path, space_file, tiny, capsys, arguments, message
):
    from mixtune import cli
    from mixtune.search import __main__ as search_command

    known = {"{space}": str(space_file(tiny)), "{file}": str(tmp_path / "space.yaml")}
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "out")]
    for key, value in known.items():
        arguments = [a.replace(key, value) for a in arguments]
    with pytest.raises(SystemExit) as stop:
        cli.run_command(lambda: search_command.main([*arguments, *out]))
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.search(message, printed.err)
    assert printed.err.count("\n") == 1
    assert "hunter2" not in printed.err
    assert not (tmp_path / "out" / "study.journal").exists()


def test_a_dry_run_needs_no_data_and_writes_nothing(tmp_path, run_here):
    words = ["-m", "mixtune.search", "--space", str(ROOT / "search_spaces/imagenet.yaml"), "--dry-run"]
    printed = run_here(words, tmp_path)
    assert re.search(r"mixsize_d +[\d,]+ +29\.9 +89\.8n +1\.000x +96x279x5 1\.00x", printed)
    assert re.search(r"sampled 4 ", printed)
    assert list(tmp_path.iterdir()) == []


def test_two_searches_in_one_folder_are_refused(tmp_path, space_file, tiny):
    import fcntl

    from mixtune.errors import InputError
    from mixtune.search import __main__ as search_command

    with (tmp_path / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=f"--out {tmp_path}"):
            search_command.main(["--space", str(space_file(tiny)), "--out", str(tmp_path)])
