import pytest

from mixtune.errors import InputError
from mixtune.regime import PUBLISHED, BatchShape, published
from mixtune.regime.files import load_regime, regime_from_dict, save_regime


@pytest.mark.parametrize("base", [BatchShape(32, 64), BatchShape(224, 256)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_round_trip_is_exact(tmp_path, base, name):
    regime = published(name, base, [base.S // 2, base.S], 4)
    save_regime(tmp_path / "r.yaml", regime, {"seed": 3})
    again, training = load_regime(tmp_path / "r.yaml")
    assert (again, again.name, again.source, training) == (regime, regime.name, regime.source, {"seed": 3})


def test_p_may_be_given_as_shares_of_the_samples():
    shapes = [{"S": 16, "B": 256, "p": 0.5}, {"S": 32, "B": 64, "p": 0.5}]
    data = {"version": 1, "base": {"S": 32, "B": 64}, "phases": [{"p_of": "samples", "mixture": shapes}]}
    regime, _ = regime_from_dict(data, "r.yaml")
    assert regime.phases[0].mixture.p == pytest.approx((0.2, 0.8))
    assert regime.phases[0].mixture.sample_shares == pytest.approx((0.5, 0.5))


def test_files_are_readable_and_say_both_shares(tmp_path):
    path = tmp_path / "r.yaml"
    save_regime(path, published("mixsize_b", BatchShape(32, 64), [16, 32], 8))
    lines = path.read_text().splitlines()
    assert lines[0] == "# 16x256 5% · 24x114 17% · 32x64 31% · 48x28 47%"
    assert lines[1:3] == ["version: 1", "name: mixsize_b"]
    assert "  - {S: 24, B: 114, D: 1, p: 0.17" in path.read_text()
    assert sum(line.endswith("# 30 % of the samples") for line in lines) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(version=2), "version.*1.*2"),
        (dict(base={"S": 16, "B": 2, "batch": 3}), r"base\.batch.*B, D, S"),
        (dict(clock="days"), "clock.*'budget'.*'epochs'.*'steps'.*'days'"),
        (dict(phases=[]), "phases"),
        (dict(phases=[{"mixture": [{"S": 8, "B": 2, "p": -1}]}]), r"phases\.0.*-1\.0"),
        (dict(phases=[{"mixture": [{"S": 8, "B": 2, "p": 0}]}]), r"phases\.0.*zero"),
        (dict(phases=[{"mixture": [{"S": 8, "B": "two", "p": 1}]}]), r"phases\.0\.mixture\.0\.B.*'two'"),
        (dict(phases=[{"share": 0, "mixture": [{"S": 8, "B": 2, "p": 1}]}]), r"phases.*0\.0"),
    ],
)
def test_bad_files_are_one_sentence_with_file_and_key(change, message):
    good = {"version": 1, "base": {"S": 16, "B": 2}, "phases": [{"mixture": [{"S": 8, "B": 2, "p": 1}]}]}
    assert regime_from_dict(good, "r.yaml")
    with pytest.raises(InputError, match=message) as error:
        regime_from_dict(good | change, "r.yaml")
    assert str(error.value).startswith("r.yaml")
