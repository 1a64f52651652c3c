import re
from pathlib import Path

import pytest

from mixtune import export
from mixtune.errors import InputError
from mixtune.regime import BatchShape
from mixtune.regime.files import load_regime

REGIMES = Path(__file__).parents[1] / "search_spaces" / "regimes"


def file(name):
    return str(REGIMES / f"{name}.yaml")


def test_flags_are_one_line_that_can_be_pasted(capsys):
    assert export.main(["--regime", file("entr_stepwise_authors"), "--timm", "--processes", "4"]) == 0
    comment, flags = capsys.readouterr().out.splitlines()
    assert re.search("^# entr_stepwise_authors: 761,038 .*90 .*1,281,167 .*224x256", comment)
    assert flags.startswith("--img-size 224 --train-img-sizes 96 224 --train-batch-sizes 64 64 --train-size-schedule")


def test_a_regime_is_rebased_into_a_file(capsys, tmp_path):
    out = tmp_path / "large.yaml"
    export.main(["--regime", file("mixsize_cifar_b"), "--base", "224x256", "--stride", "32", "--out", str(out)])
    regime, training = load_regime(out)
    assert regime.base == BatchShape(224, 256)
    assert training == {}
    assert re.search(r"32x64 .*224x256 .*\b32\b", capsys.readouterr().out)


def test_published_regimes_are_written_as_they_are_kept(capsys, tmp_path):
    export.main(["--published", str(tmp_path)])
    assert re.search(r"\b30 ", capsys.readouterr().out)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in REGIMES.glob("*.yaml")}
    assert (tmp_path / "mixsize144_b.yaml").read_text() == Path(file("mixsize144_b")).read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--regime", file("mixsize144_d"), "--timm"], r"mixsize144_d\.yaml: .*D = 5"),
        (["--regime", file("fixed"), "--base", "224", "--out", "x"], r"--base 224:"),
        (["--regime", file("fixed"), "--base", "224x0", "--out", "x"], r"--base 224x0: B .*0"),
        (["--regime", file("fixed"), "--base", "200x8", "--out", "x"], r"\b200\b.*\b32\b"),
        (["--regime", file("fixed")], r"--timm.*--base.*--out"),
        (["--regime", file("fixed"), "--base", "224x8"], r"--timm.*--base.*--out"),
        ([], r"--regime.*--published"),
    ],
)
def test_bad_input_is_one_sentence(args, message):
    with pytest.raises(InputError, match=message):
        export.main(args)
