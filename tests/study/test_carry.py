"""A study on a proxy, its best regimes on the full task, and how the two rank them."""

import copy
import json

import pytest
import yaml

from mixtune import search
from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.regime.files import save_regime
from mixtune.study import carry
from mixtune.study.carry import agreement, carried
from mixtune.study.sampling import Outcome, Trials
from mixtune.study.space import Space
from tests.conftest import TINY

# What the full task of the tests is to the proxy: more data, more epochs, another base.
FULL = {"study": "full", "task": TINY["task"] | {"samples": 800}, "base": {"S": 16, "B": 16}, "budget": {"epochs": 2}}
FULL |= {"search": {"sizes": [8, 16, 24]}, "evaluate": {"sizes": [16], "reports": 3}}


def full(**changes):
    return parse(TINY | FULL | changes, Space, "full.yaml")


@pytest.fixture
def proxy(tmp_path):
    """A finished study on the proxy whose scores are known, with two published and four searched regimes."""
    space = parse(TINY | {"trials": 6}, Space, "f")
    trials = Trials(f"sqlite:///{tmp_path}/study.db", space, 4)
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
    space, scores = carried(full(), proxy, 2)
    assert [path.split("/")[-2] for path in space.known] == ["0003", "0004"]
    assert list(scores.values()) == [0.5, 0.9, 0.8, 0.7]
    assert (space.study, space.trials) == ("full-carried", 4)
    assert [stage.share for stage in space.stages] == [1.0]  # all spend the whole budget
    assert space.pruner.name == "none"
    points = space.known_points(4)
    assert all(regime_sizes <= {8, 16, 24} for regime_sizes in (set(space.regime(p).sizes) for p in points.values()))


def test_a_study_remembers_the_proxys_scores_and_more_regimes_may_follow(proxy, tmp_path):
    url = f"sqlite:///{tmp_path}/full.db"
    space, scores = carried(full(), proxy, 1)
    trials = Trials(url, space, 4, scores)
    asked = [trials.ask()[0] for _ in range(2)]
    trials.finish(asked[0], "COMPLETE", 0.4, "", None)
    trials.close()  # the other is cut off
    space, scores = carried(full(), proxy, 3)
    trials = Trials(url, space, 4, scores)
    trials.reconcile()
    while trials.remaining():
        trial, _ = trials.ask()
        trials.finish(trial, "COMPLETE", 0.6, "", None)
    assert sorted(o.proxy for o in trials.outcomes()) == [0.3, 0.5, 0.7, 0.8, 0.9]
    trials.close()


def outcomes(*pairs):
    return [Outcome(i, "COMPLETE", here, {}, "", "", None, before) for i, (before, here) in enumerate(pairs)]


def test_the_agreement_is_spearmans_over_what_both_have():
    both = outcomes((0.1, 0.2), (0.2, 0.4), (0.3, 0.6), (0.4, 0.5), (None, 0.9))
    found = agreement(both)
    assert (found.n, found.spearman, found.place) == (4, pytest.approx(0.8), 2)
    assert found.lost == pytest.approx(0.1)
    assert "ranks 4 regimes as this task does with Spearman's coefficient 0.80; its best is number 2 here" in str(found)
    assert found.tags == {"mixtune.proxy.spearman": "0.8000", "mixtune.proxy.regimes": "4"}
    assert "2 regimes in common, too few" in str(agreement(both[:2]))
    assert agreement(outcomes((None, 0.9))) is None
    assert agreement(outcomes((0.5, 0.5), (0.5, 0.6), (0.5, 0.7))).spearman is None


def test_an_unusable_proxy_is_one_sentence(proxy, tmp_path_factory, monkeypatch):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(InputError, match=r"--from .*: holds no study \(space.yaml\); name the folder of a search"):
        carried(full(), empty, 3)
    with pytest.raises(InputError, match="--top must be at least 0, not -1"):
        carried(full(), proxy, -1)
    (proxy / "trials/0003/regime.yaml").unlink()
    with pytest.raises(InputError, match=r"0003/regime.yaml is gone"):
        carried(full(), proxy, 1)
    (empty / "space.yaml").write_text(yaml.safe_dump(TINY))
    with pytest.raises(InputError, match=r"study 'tiny' is not there; name its database with --storage"):
        carried(full(), empty, 3)
    monkeypatch.setattr(carry.Trials, "outcomes", lambda self: [])
    with pytest.raises(InputError, match="has no complete trial to carry"):
        carried(full(), proxy, 1)


def test_a_regime_whose_sizes_the_full_space_lacks_is_named(proxy):
    space, _ = carried(full(search={"sizes": [8, 16]}, published=["fixed"]), proxy, 4)
    with pytest.raises(ValueError, match=r"known: .*: at base 16 px trains on .*24 px; add 24 to search.sizes"):
        space.known_points(4)


@pytest.mark.slow
def test_one_command_carries_a_study_and_another_goes_on_with_it(tmp_path, space_file, capsys, monkeypatch):
    """From a smaller network on fewer samples to the full task, as a user types it."""
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    small = copy.deepcopy(TINY) | {"study": "small", "trials": 5}
    assert search.main(["--space", str(space_file(small))]) == 0
    command = ["--space", str(space_file(TINY | FULL, "full.yaml")), "--from", "studies/small"]
    assert search.main([*command, "--top", "1"]) == 0
    assert "ranks 3 regimes as this task does with Spearman's coefficient" in capsys.readouterr().out
    assert search.main([*command, "--top", "2"]) == 0
    said = capsys.readouterr().out
    assert "study full-carried goes on: 3 of 4 trials are done" in said
    assert "ranks 4 regimes as this task does" in said
    client = MlflowClient(f"sqlite:///{tmp_path}/studies/full-carried/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("mixtune").experiment_id])
    (parent,) = (r for r in runs if r.data.tags["mixtune.kind"] == "study")
    assert parent.data.tags["mixtune.proxy.regimes"] == "4"
    assert json.loads(parent.data.tags["mixtune.proxy.spearman"]) <= 1
