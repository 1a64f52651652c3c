"""A study on a proxy, its best regimes on the full task, and how the two rank them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mixtune.config import load_config, parse
from mixtune.errors import InputError
from mixtune.profiling.checks import check_sizes, expected_images
from mixtune.regime.files import save_regime
from mixtune.search import __main__ as search_command
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.space import Space
from mixtune.search.trial_result import TrialResult
from mixtune.study import proxy as study_proxy
from mixtune.study.proxy import full_space, proxy_agreement, proxy_space
from tests.conftest import TINY
from tests.execution.test_estimate import alone
from tests.profiling.test_resource_profile import device
from tests.test_search import command

__all__ = ["alone", "device"]  # fixtures

# What the full task of the tests is to the proxy: more data, more epochs, another base.
FULL = {"study": "full", "task": TINY["task"] | {"samples": 800}, "base": {"S": 16, "B": 16}, "budget": {"epochs": 2}}
FULL |= {"search": {"sizes": [8, 16, 24]}, "evaluate": {"sizes": [16], "reports": 3}}


def full(**changes):
    return parse(TINY | FULL | changes, Space, "full.yaml")


@pytest.fixture
def proxy(tmp_path):
    """A finished study on the proxy whose scores are known, with two published and four searched regimes."""
    space = parse(TINY | {"trials": 6}, Space, "f")
    trials = OptunaStudy(f"journal:///{tmp_path}/study.journal", space, 4)
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(TINY))
    for score in (0.5, 0.9, 0.3, 0.8, 0.7, None):
        trial, params = trials.ask()
        trials.finish(trial, "FAIL" if score is None else "COMPLETE", score, "", None)
        regime = space.regime(params, trial.user_attrs.get("published", ""))
        (tmp_path / "trials" / f"{trial.number:04d}").mkdir(parents=True)
        save_regime(tmp_path / "trials" / f"{trial.number:04d}" / "regime.yaml", regime)
    trials.close()
    return tmp_path


def test_the_best_searched_and_the_published_regimes_are_carried(proxy):
    space, scores = full_space(full(), proxy, 2)
    assert [path.split("/")[-2] for path in space.known] == ["0003", "0004"]
    assert list(scores.values()) == [0.5, 0.9, 0.8, 0.7]
    assert (space.study, space.trials) == ("full-carried", 4)
    assert [stage.share for stage in space.stages] == [1.0]  # all spend the whole budget
    assert space.pruner.name == "none"
    points = space.known_points(4)
    assert all(regime_sizes <= {8, 16, 24} for regime_sizes in (set(space.regime(p).sizes) for p in points.values()))


def test_a_study_remembers_the_proxys_scores_and_more_regimes_may_follow(proxy, tmp_path):
    url = f"journal:///{tmp_path}/study.journal"
    space, scores = full_space(full(), proxy, 1)
    trials = OptunaStudy(url, space, 4, scores)
    asked = [trials.ask()[0] for _ in range(2)]
    trials.finish(asked[0], "COMPLETE", 0.4, "", None)
    trials.close()  # the other is cut off
    space, scores = full_space(full(), proxy, 3)
    trials = OptunaStudy(url, space, 4, scores)
    trials.reconcile()
    while trials.remaining():
        trial, _ = trials.ask()
        trials.finish(trial, "COMPLETE", 0.6, "", None)
    assert sorted(o.proxy for o in trials.outcomes()) == [0.3, 0.5, 0.7, 0.8, 0.9]
    trials.close()


def outcomes(*pairs):
    return [TrialResult(i, "COMPLETE", here, {}, "", "", None, before) for i, (before, here) in enumerate(pairs)]


def test_the_agreement_is_spearmans_over_what_both_have():
    both = outcomes((0.1, 0.2), (0.2, 0.4), (0.3, 0.6), (0.4, 0.5), (None, 0.9))
    found = proxy_agreement(both)
    assert (found.n, found.spearman, found.rank) == (4, pytest.approx(0.8), 2)
    assert found.deficit == pytest.approx(0.1)
    assert "ranks 4 regimes as this task does with Spearman's coefficient 0.80; its best is number 2 here" in str(found)
    assert found.tags == {"mixtune.proxy.spearman": "0.8000", "mixtune.proxy.regimes": "4"}
    assert "2 regimes in common, too few" in str(proxy_agreement(both[:2]))
    assert proxy_agreement(outcomes((None, 0.9))) is None
    assert proxy_agreement(outcomes((0.5, 0.5), (0.5, 0.6), (0.5, 0.7))).spearman is None


def test_an_unusable_proxy_is_one_sentence(proxy, tmp_path_factory, monkeypatch):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(InputError, match=r"--from .*: holds no study \(space.yaml\); name the folder of a search"):
        full_space(full(), empty, 3)
    with pytest.raises(InputError, match="--top must be at least 0, not -1"):
        full_space(full(), proxy, -1)
    (proxy / "trials/0003/regime.yaml").unlink()
    with pytest.raises(InputError, match=r"0003/regime.yaml is gone"):
        full_space(full(), proxy, 1)
    (empty / "space.yaml").write_text(yaml.safe_dump(TINY))
    with pytest.raises(InputError, match=r"study 'tiny' is not there; name its database with --storage"):
        full_space(full(), empty, 3)
    monkeypatch.setattr(study_proxy.OptunaStudy, "outcomes", lambda self: [])
    with pytest.raises(InputError, match=r"--from .*no complete trial"):
        full_space(full(), proxy, 1)


def test_a_regime_whose_sizes_the_full_space_lacks_is_named(proxy):
    space, _ = full_space(full(search={"sizes": [8, 16]}, published=["fixed"]), proxy, 4)
    with pytest.raises(ValueError, match=r"known: .*at base 16 px trains on .*24 px; add 24 to search\.sizes"):
        space.known_points(4)


def test_the_proxy_section_changes_what_it_names_and_nothing_else():
    space = full(proxy={"task": {"samples": 100, "classes": 5}, "budget": {"epochs": 0.5}, "trials": 9})
    cheaper = proxy_space(space, "full.yaml")
    assert (cheaper.study, cheaper.task.samples, cheaper.task.network) == ("full-proxy", 100, space.task.network)
    assert (cheaper.task.classes, space.task.classes) == (5, None)
    assert (cheaper.budget.epochs, cheaper.trials, cheaper.proxy) == (0.5, 9, {})
    assert (cheaper.search, cheaper.base) == (space.search, space.base)
    assert space.digest() == full().digest()  # a search on the full task alone stays the same study
    for section, said in (
        ({}, "full.yaml: has no proxy section"),
        ({"task": {"sample": 5}}, "full.yaml: proxy: unknown key task.sample; did you mean 'samples'?"),
        ({"trials": 0}, "full.yaml: proxy: trials must be at least 1"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            proxy_space(full(proxy=section), "full.yaml")


def test_the_shipped_proxy_is_a_space_that_can_be_searched():
    file = str(Path(__file__).parents[2] / "search_spaces/imagenet.yaml")
    cheaper = proxy_space(load_config(file, Space), file)
    stride = check_sizes(cheaper, file)
    for name in cheaper.published:
        cheaper.published_params(name, stride)
    every = replace(cheaper, task=replace(cheaper.task, classes=100, samples=None))
    assert expected_images(cheaper, file)[0] == pytest.approx(0.98 * (cheaper.task.samples or 1_281_167), abs=1)
    assert expected_images(every, file)[0] == pytest.approx(0.98 * 1_281_167 / 10, abs=1)
    many = replace(cheaper, task=replace(cheaper.task, classes=1001))
    with pytest.raises(InputError, match=r"imagenet\.yaml: task\.classes: imagenet has 1000 classes, not 1001"):
        expected_images(many, file)


def test_a_dry_run_of_a_proxy_tells_what_comes_after_it(capsys):
    file = Path(__file__).parents[2] / "search_spaces/imagenet.yaml"
    assert search_command.main(["--space", str(file), "--proxy", "--top", "2", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"250,880 training images of the full ImageNet \(nothing is at .*\); base 224x256, 16 epochs", said
    )
    whole = r"resnet50, 30 epochs at 224x256, 1,255,544 training images of the full ImageNet \(nothing is at .*\)"
    assert re.search(
        rf"then 8 runs on the whole task \({whole}\): published regimes, and the 2 best found here\n", said
    )


def two_stages(**changes):
    """Settings of a search on a proxy and of the task after it."""
    cheaper = {"task": {"samples": 400}, "base": {"S": 8, "B": 32}, "budget": {"epochs": 40}}
    cheaper |= {"search": {"sizes": [4, 8, 12]}}
    return TINY | FULL | {"budget": {"epochs": 80}, "proxy": cheaper} | changes


def hours(said):
    """The core-hours of every plan in this text, and those of all."""
    *each, whole = (
        float(line.split()[1 + line.startswith("in all")])
        for line in said.splitlines()
        if line.startswith(("hours ", "in all "))
    )
    return each, whole


def test_a_dry_run_measures_the_proxy_and_the_task_after_it(alone, tmp_path, space_file, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = str(space_file(two_stages(pruner={"name": "none"})))
    assert search_command.main(["--space", file, "--proxy", "--dry-run", "--measure"]) == 0
    said = capsys.readouterr().out
    assert said.index("\nthe proxy\n") < said.index("\nthen the whole task\n") < said.index("\nin all ")
    each, whole = hours(said)
    assert len(each) == 2
    assert whole == pytest.approx(sum(each), rel=0.01)
    assert [p.name for p in tmp_path.iterdir()] == ["space.yaml"]


def test_both_are_told_before_the_proxy_begins(alone, tmp_path, space_file, monkeypatch, capsys):
    def begins(space, *_, **__):
        each, _ = hours(capsys.readouterr().out)
        assert (space.study, len(each)) == ("full-proxy", 2)
        raise InputError("the proxy begins")

    monkeypatch.setattr("mixtune.study.run_study.run_study", begins)
    out = tmp_path / "out"
    with pytest.raises(InputError, match="the proxy begins"):
        search_command.main(["--space", str(space_file(two_stages())), "--proxy", "--out", str(out)])
    for folder in (out, out / "proxy"):  # kept for the searches
        assert (folder / "profile.yaml").exists()


@pytest.mark.parametrize(
    ("changes", "flags", "said"),
    [
        ({"base": {"S": 16, "B": 1000}}, [], "base: shape 16x1000 needs 1000 distinct images"),
        ({"base": {"S": 16, "B": 2000}}, ["--dry-run"], "base: shape 16x2000 needs 2000 distinct images"),
        ({"evaluate": {"sizes": [18]}}, [], "18 px is not a multiple"),
        ({"base": {"S": 16, "B": 300}, "search": {"sizes": [16]}}, [], r"at 16 px a batch of 300 needs about .* fit"),
        ({}, ["--dry-run", "--top", "-1"], "--top must be at least 0, not -1"),
        ({"published": []}, ["--dry-run", "--top", "0"], "--top must be at least 1 where no published regimes"),
    ],
)
def test_a_problem_of_the_whole_task_is_told_before_the_proxy(
    alone, changes, flags, said, tmp_path, space_file, monkeypatch, capsys
):
    from tests.profiling.test_resource_profile import MIB, FakeDevice

    monkeypatch.setattr(FakeDevice, "memory", 256 * MIB)
    settings = two_stages(**changes)
    settings["proxy"] |= {"evaluate": {"sizes": [8]}}
    with pytest.raises(InputError, match=said):
        search_command.main(["--space", str(space_file(settings)), "--proxy", "--out", str(tmp_path / "out"), *flags])
    assert "training images" not in capsys.readouterr().out
    assert not (tmp_path / "out/proxy/study.journal").exists()


def test_a_search_on_a_proxy_and_a_study_that_was_exclude_each_other(space_file, tiny):
    with pytest.raises(InputError, match="--proxy searches, and --from names a study that was: give one of them"):
        search_command.main(["--space", str(space_file(tiny)), "--proxy", "--from", "x"])


@pytest.mark.slow
def test_one_command_carries_a_study_and_another_goes_on_with_it(tmp_path, space_file):
    """From a smaller base and budget on fewer samples to the full task, as a user types it."""
    from mlflow import MlflowClient

    cheaper = {"task": {"samples": 400, "classes": 5}, "base": {"S": 8, "B": 32}, "budget": {"epochs": 1}, "trials": 5}
    cheaper |= {"search": {"sizes": [4, 8, 12]}, "pruner": {"name": "none"}}  # so that all can be carried
    words = ["mixtune.search", "--space", space_file(TINY | FULL | {"proxy": cheaper})]
    first = command(*words, "--proxy", "--top", "1", cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "study full-proxy: 5 trials" in first.stdout
    assert first.stdout.count("train the best regime on its own") == first.stdout.count("prove it on the test set") == 1
    assert first.stdout.index("in all ") < first.stdout.index("study full-proxy: 5 trials")
    assert "ranks 3 regimes as this task does with Spearman's coefficient" in first.stdout
    proxy = tmp_path / "studies/full-carried/proxy"
    more = command(*words, "--from", proxy, "--top", "2", cwd=tmp_path)  # goes on with the same
    assert "study full-carried goes on: 3 of 4 trials are done" in more.stdout
    assert "ranks 4 regimes as this task does" in more.stdout
    client = MlflowClient(f"sqlite:///{tmp_path}/studies/full-carried/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("mixtune").experiment_id])
    (parent,) = (r for r in runs if r.data.tags["mixtune.kind"] == "study")
    assert parent.data.tags["mixtune.proxy.regimes"] == "4"
    assert json.loads(parent.data.tags["mixtune.proxy.spearman"]) <= 1
