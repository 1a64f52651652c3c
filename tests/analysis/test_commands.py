"""Every analysis command on a study in MLflow: what it writes, and what it says of bad input."""

import csv
import importlib
from dataclasses import replace

import pytest
from mlflow import MlflowClient

from analysis.compare import draw_studies
from analysis.importance import importances, trend
from analysis.study_runs import read_study
from mixtune import cli
from mixtune.errors import InputError
from mixtune.optim.recipe import Recipe
from mixtune.regime import Budget, Schedule
from mixtune.regime.files import load_regime, save_regime
from mixtune.training.run import TrainingConfig
from tests.analysis.conftest import curve

COMMANDS = {
    "pareto": [],
    "sizes": [],
    "timeline": [],
    "importance": [],
    "robustness": [],
    "efficiency": [],
    "compare": ["fixed", "searched"],
}


def call(name, made, out, *more, study="tiny"):
    module = importlib.import_module(f"analysis.{name}")
    return module.main(["--study", study, "--tracking-uri", made.uri, "--out", str(out), *more])


@pytest.mark.parametrize("name", COMMANDS)
def test_each_writes_picture_vectors_and_table_the_same_every_time(study, tmp_path, name):
    for folder in ("one", "two"):
        assert call(name, study, tmp_path / folder, *COMMANDS[name]) == 0
    files = {p.name for p in (tmp_path / "one").iterdir()}
    assert files == {f"{name}.png", f"{name}.svg", f"{name}.csv"}
    for suffix in ("svg", "csv"):
        one, two = ((tmp_path / f / f"{name}.{suffix}").read_text() for f in ("one", "two"))
        assert one == two
        assert one
    from PIL import Image

    with Image.open(tmp_path / "one" / f"{name}.png") as image:
        assert name == "timeline" or image.width == 1050  # 3.5 inches at 300 dots: a column


@pytest.mark.parametrize("name", COMMANDS)
def test_bad_input_is_one_sentence_and_exit_code_two(study, tmp_path, name, capsys):
    module = importlib.import_module(f"analysis.{name}")
    for arguments, message in (
        (["--study", "other", "--tracking-uri", study.uri], "holds no trials of this study"),
        (["--study", "tiny", "--tracking-uri", f"sqlite:///{tmp_path}/none.db"], "there is no such file"),
        (["--tracking-uri", study.uri], "--study"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.run_command(lambda arguments=arguments: module.main([*arguments, *COMMANDS[name]]))
        assert stop.value.code == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1


def test_a_study_without_complete_trials_says_what_it_has(made, tmp_path):
    made.trial(0, "fixed", curve(0.5, 0.5), "FAIL")
    made.trial(1, "searched", curve(0.5, 0.5), "PRUNED")
    with pytest.raises(InputError, match=r"no complete trial of this study yet \(trials: 1 FAIL, 1 PRUNED\)"):
        call("sizes", made, tmp_path)


def test_a_metric_that_no_trial_has_is_named(made, tmp_path):
    client = MlflowClient(made.uri)
    tags = {"mixtune.study": "tiny", "mixtune.kind": "trial", "mixtune.state": "COMPLETE"}
    tags |= {"mixtune.family": "fixed", "mixtune.regime": "8x32 100%"}
    run = client.create_run(made.tracker.experiment, tags=tags)
    for metric in ("gmacs", "top1", "top5", "loss"):
        client.log_metric(run.info.run_id, f"curve/{metric}", 0.5, step=8)
    with pytest.raises(InputError, match=r"the complete trials in .* lack the metric curve/ece by image size"):
        call("sizes", made, tmp_path)


def test_a_study_that_has_only_begun_is_one_sentence(made, tmp_path):
    with pytest.raises(InputError, match="holds no trials of this study"):
        call("sizes", made, tmp_path)


def test_a_foreign_database_is_one_sentence(tmp_path):
    import sqlite3

    with sqlite3.connect(tmp_path / "foreign.db") as db:
        db.execute("create table alembic_version (version_num varchar(32))")
        db.execute("insert into alembic_version values ('nonsense')")
    db.close()
    with pytest.raises(InputError, match="MLflow did not write this"):
        read_study(f"sqlite:///{tmp_path}/foreign.db", "tiny")


def test_a_store_written_by_something_else_is_one_sentence(made, tmp_path):
    client = MlflowClient(made.uri)
    for kind in ("study", "trial"):  # named like ours, and holding something else
        tags = {"mixtune.study": "other", "mixtune.kind": kind, "mixtune.state": "COMPLETE"}
        run = client.create_run(made.tracker.experiment, tags=tags)
        for metric in ("gmacs", "top1", "top5", "loss", "ece"):
            client.log_metric(run.info.run_id, f"curve/{metric}", 0.5, step=8)
    with pytest.raises(InputError, match="holds no complete trial of this study yet"):
        call("sizes", made, tmp_path, study="other")
    client.set_tag(run.info.run_id, "mixtune.family", "fixed")
    client.set_tag(run.info.run_id, "mixtune.regime", "8x32 100%")
    with pytest.raises(InputError, match=r"its parent run in .* lacks the parameter task\.dataset"):
        call("sizes", made, tmp_path, study="other")


def test_figures_are_logged_to_the_parent_run(made, tmp_path):
    made.trial(0, "fixed", curve(0.5, 0.6))
    call("sizes", made, tmp_path / "out", "--log")
    names = {a.path for a in MlflowClient(made.uri).list_artifacts(made.tracker.parent, "figures")}
    assert names == {"figures/sizes.png", "figures/sizes.svg", "figures/sizes.csv"}


def test_the_sizes_table_holds_accuracy_and_training_support(study, tmp_path):
    call("sizes", study, tmp_path)
    rows = list(csv.DictReader((tmp_path / "sizes.csv").open()))
    fixed = {int(r["S"]): (r["top1"], float(r["training_share"])) for r in rows if r["family"] == "fixed"}
    assert fixed == {4: ("", 0.0), 8: ("0.6", 1.0), 12: ("0.8", 0.0)}
    best = {int(r["S"]): float(r["training_share"]) for r in rows if r["trial"] == "6"}
    assert best == pytest.approx({4: 0.2 / 2.0, 8: 1.0 / 2.0, 12: 0.8 / 2.0})


def test_regimes_are_rebuilt_as_they_were_trained(study):
    read = read_study(study.uri, "tiny")
    for trial in read.trials:
        kept, _ = load_regime(study.folder / "trials" / f"{trial.number:04d}" / "regime.yaml")
        assert [str(s) for s in read.regime(trial).shapes] == [str(s) for s in kept.shapes]
        assert str(read.regime(trial)) == str(kept)


def test_a_study_of_an_earlier_version_is_read(made):
    """Its runs have no exact point, its space no weights and no recipe to search, its ranges no logarithm."""
    point = {"w_4": 1 / 3, "w_8": 1.0, "w_12": 2 / 3, "split": 0.123456789, "growth": "gradual"}
    made.trial(0, "searched", curve(0.5, 0.6), **point)
    new = read_study(made.uri, "tiny")
    client = MlflowClient(made.uri)
    (run,) = (r for r in client.search_runs([made.tracker.experiment]) if "mixtune.trial" in r.data.tags)
    client.delete_tag(run.info.run_id, "mixtune.point")
    settings = {k: v for k, v in new.settings.items() if k not in ("search.weights", "search.recipe")}
    old = read_study(made.uri, "tiny")
    old = replace(old, settings=settings | {"search.split": "{'low': 0.0, 'high': 1.0}", "score.S": "None"})
    assert new.trials[0].params == point
    assert old.trials[0].params == {k: pytest.approx(v, rel=1e-3) if k != "growth" else v for k, v in point.items()}
    assert (old.search, old.score) == (new.search, new.score)
    assert str(old.regime(old.trials[0])) == str(new.regime(new.trials[0]))


def test_importance_finds_what_was_built_in(study):
    read = read_study(study.uri, "tiny")
    searched = [t for t in read.trials if t.searched]
    found = importances(read, searched)
    assert max(found, key=found.get) == "w_12"
    assert found["split"] == 0
    assert trend(read, "growth") == "best: none"


def test_too_few_trials_for_importances_are_one_sentence(made, tmp_path):
    made.trial(0, "fixed", curve(0.5, 0.6))
    with pytest.raises(InputError, match="importances need at least 6"):
        call("importance", made, tmp_path)


def test_a_cost_that_was_not_measured_is_one_sentence(study, tmp_path):
    with pytest.raises(InputError, match=r"--cost latency: trial 0 has no metric curve/latency at every size"):
        call("pareto", study, tmp_path, "--cost", "latency")


def test_measured_costs_and_corruptions_are_drawn_where_they_are(made, tmp_path):
    made.trial(0, "fixed", curve(0.5, 0.6))
    client = MlflowClient(made.uri)
    (run,) = (r for r in client.search_runs([made.tracker.experiment]) if "mixtune.trial" in r.data.tags)
    for S, latency, top1 in ((8, 1.5, 0.4), (12, 2.5, 0.45)):
        client.log_metric(run.info.run_id, "curve/latency", latency / 1000, step=S)
        client.log_metric(run.info.run_id, "curve/corruption/blur", top1, step=S)
    call("pareto", made, tmp_path, "--cost", "latency")
    assert [r["latency"] for r in csv.DictReader((tmp_path / "pareto.csv").open())] == ["1.5", "2.5"]
    assert "measured latency" in (tmp_path / "pareto.svg").read_text()
    call("robustness", made, tmp_path)
    assert [r["corruption/blur"] for r in csv.DictReader((tmp_path / "robustness.csv").open())] == ["0.4", "0.45"]
    assert "blur" in (tmp_path / "robustness.svg").read_text()


def test_efficiency_is_entrs_formula_in_both_readings(study, tmp_path):
    call("efficiency", study, tmp_path)
    rows = {r["family"]: r for r in csv.DictReader((tmp_path / "efficiency.csv").open())}
    assert float(rows["fixed"]["efficiency"]) == pytest.approx((0.8 / 1.0) ** 0.5)  # trial 0 took 60 s
    call("efficiency", study, tmp_path, "--time", "inference")
    rows = {r["family"]: r for r in csv.DictReader((tmp_path / "efficiency.csv").open())}
    assert float(rows["fixed"]["efficiency"]) == pytest.approx((0.6 / (64 / 1e5)) ** 0.5)
    assert rows["fixed"]["T_is"] == "GMACs of one image at that size"


def repeated(made, number, curves, out):
    """What ``mixtune.train --seeds`` would have written for a trial's regime."""
    from mixtune.config import to_plain
    from mixtune.evaluation.curve import write_csv

    regime, _ = load_regime(made.folder / "trials" / f"{number:04d}" / "regime.yaml")
    space = made.space
    for seed, found in enumerate(curves):
        folder = out / f"seed{seed}"
        folder.mkdir(parents=True)
        config = TrainingConfig(space.task, space.budget, space.evaluate, seed=seed)
        save_regime(folder / "regime.yaml", regime, to_plain(config))
        write_csv(folder / "curve.csv", found.rows())
        (folder / "result.yaml").write_text("judge: test\n")
    return str(out)


def test_repeated_runs_give_deviations_and_a_paired_test(made, tmp_path, capsys):
    from analysis.add_runs import main

    made.trial(0, "fixed", curve(0.5, 0.6))
    made.trial(1, "searched", curve(0.6, 0.7))
    made.trial(2, "searched", curve(0.7, 0.8), w_12=0.9)
    folders = [
        repeated(made, 0, [curve(0.50, 0.60), curve(0.52, 0.60), curve(0.51, 0.62)], tmp_path / "a"),
        repeated(made, 1, [curve(0.60, 0.61), curve(0.63, 0.60), curve(0.61, 0.62)], tmp_path / "b"),
    ]
    said = "S,family,severity,top1\n8,blur,1,0.4\n8,blur,2,0.2\n"
    (tmp_path / "a" / "seed0" / "corruptions.csv").write_text(said)
    for _ in range(2):  # the second time changes nothing
        assert main(["--study", "tiny", "--tracking-uri", made.uri, *folders]) == 0
    read = read_study(made.uri, "tiny")
    assert [r.seed for r in read.repeats_of(read.find_trial("fixed"))] == [0, 1, 2]
    client = MlflowClient(made.uri)
    runs = client.search_runs([made.tracker.experiment], "tags.`mixtune.kind` != 'study'")
    columns = {frozenset(r.data.params) & frozenset(("w_04", "w_08", "w_12")) for r in runs}
    assert columns == {frozenset(("w_04", "w_08", "w_12"))}  # one name for each parameter, in all runs
    assert all({"score", "top1/S08", "top1/S12"} <= set(r.data.metrics) for r in runs)
    assert read.best_searched.number == 1  # trained with several seeds: that is the one to show
    capsys.readouterr()
    call("compare", made, tmp_path / "out", "fixed", "searched")
    said = capsys.readouterr().out
    assert "searched #1 is better than fixed" in said
    assert "paired t-test over 3 seeds" in said
    assert "8 px (+10.33)" in said
    assert "12 px (" not in said  # +0.33 points there are within the noise
    call("pareto", made, tmp_path / "out")
    rows = {(r["family"], r["S"]): r for r in csv.DictReader((tmp_path / "out" / "pareto.csv").open())}
    assert rows["fixed", "8"]["seeds"] == "3"
    assert float(rows["fixed", "8"]["deviation"]) == pytest.approx(0.01)
    call("robustness", made, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "robustness.csv").open()))
    found = [r["corruption/blur"] for r in rows if r["family"] == "fixed"]
    assert (float(found[0]), found[1]) == (pytest.approx(0.3), "")
    assert {r["corruption/blur"] for r in rows if r["family"] == "searched"} == {""}


def test_runs_of_other_regimes_or_nothing_are_refused(study, made, tmp_path):
    from analysis.add_runs import main

    arguments = ["--study", "tiny", "--tracking-uri", study.uri]
    with pytest.raises(InputError, match="holds no finished run"):
        main([*arguments, str(tmp_path)])
    made.trial(0, "searched", curve(0.5, 0.5), w_12=0.99)
    with pytest.raises(InputError, match="no complete trial of study tiny trained this regime"):
        main([*arguments, repeated(made, 0, [curve(0.5, 0.5)], tmp_path / "a")])
    arguments = ["--study", "tiny", "--tracking-uri", made.uri]
    (tmp_path / "a" / "seed0" / "result.yaml").write_text("judge: nobody\n")
    with pytest.raises(InputError, match="judge must be validation or test, not 'nobody'"):
        main([*arguments, str(tmp_path / "a")])
    (tmp_path / "a" / "seed0" / "result.yaml").unlink()
    with pytest.raises(InputError, match=r"holds no result.yaml, which says on which images it was judged"):
        main([*arguments, str(tmp_path / "a")])


def test_runs_belong_to_the_trial_with_their_regime_and_recipe(made, tmp_path):
    from analysis.add_runs import matching_trial

    made.trial(0, "searched", curve(0.5, 0.5), growth="window", **{"recipe.lr": 0.05})
    made.trial(1, "searched", curve(0.5, 0.5), growth="window", **{"recipe.lr": 0.1})
    made.trial(2, "searched", curve(0.5, 0.5), growth="window", w_12=0.61, **{"recipe.lr": 0.1})
    study = read_study(made.uri, "tiny")
    study = replace(study, settings={**study.settings, "search.recipe": "{'lr': {'low': 0.01, 'high': 1}}"})
    regimes = [load_regime(made.folder / "trials" / f"{i:04d}" / "regime.yaml")[0] for i in range(3)]
    assert [matching_trial(study, regimes[0], Recipe(lr=lr)).number for lr in (0.05, 0.1)] == [0, 1]
    assert matching_trial(study, regimes[2], Recipe(lr=0.1)).number == 2
    with pytest.raises(InputError, match="no complete trial of study tiny trained this regime with this recipe"):
        matching_trial(study, regimes[0], Recipe(lr=0.2))


def test_the_training_support_of_a_sliding_window_is_what_it_spends(made):
    made.trial(0, "searched", curve(0.5, 0.5), growth="window")
    study = read_study(made.uri, "tiny")
    regime, _ = load_regime(made.folder / "trials" / "0000" / "regime.yaml")
    schedule = Schedule.build(regime, Budget(100), 3200, seed=0)
    spent = {S: sum(s.pixels for s in schedule if s.S == S) for S in regime.sizes}
    assert study.compute_shares(study.trials[0]) == pytest.approx(
        {S: x / sum(spent.values()) for S, x in spent.items()}, abs=2e-3
    )


def test_two_studies_are_compared_over_the_regimes_they_share(study, made, tmp_path, capsys):
    made.trial(0, "fixed", curve(0.70, 0.80))
    made.trial(1, "multiscale", curve(0.79, 0.80))
    call("compare", study, tmp_path, "--other", "tiny", "--other-uri", made.uri)
    said = capsys.readouterr().out
    assert "paired t-test over 2 shared regimes" in said
    assert "they differ" not in said
    one, two = (read_study(uri, "tiny") for uri in (study.uri, made.uri))
    two = replace(two, settings={**two.settings, "budget.epochs": "2.0", "search.split": "[1]"})
    assert draw_studies(one, two, tmp_path)[1][1] == (
        "they differ in more than what was searched: budget.epochs 1.0 and 2.0"
    )
    rows = list(csv.DictReader((tmp_path / "compare.csv").open()))
    assert [r["family"] for r in rows] == ["fixed", "multiscale", "mean"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name either two runs"),
        (["fixed"], "name either two runs"),
        (["fixed", "fixed"], "compared with itself"),
        (["fixed", "mixsize_b"], r"mixsize_b: study tiny has no complete trial of this name; known: fixed, multiscale"),
    ],
)
def test_what_to_compare_must_be_clear(study, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        call("compare", study, tmp_path, *arguments)
