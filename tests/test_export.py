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
    assert comment.startswith("# entr_stepwise_authors: 761,038 steps for 90 epochs of 1,281,167 images at 224x256")
    assert flags.startswith("--img-size 224 --train-img-sizes 96 224 --train-batch-sizes 64 64 --train-size-schedule")


def test_a_regime_is_rebased_into_a_file(capsys, tmp_path):
    out = tmp_path / "large.yaml"
    export.main(["--regime", file("mixsize_cifar_b"), "--base", "224x256", "--stride", "32", "--out", str(out)])
    regime, training = load_regime(out)
    assert regime.base == BatchShape(224, 256)
    assert training == {}
    assert "re-based from 32x64 to 224x256 at stride 32" in capsys.readouterr().out


def test_published_regimes_are_written_as_they_are_kept(capsys, tmp_path):
    export.main(["--published", str(tmp_path)])
    assert "wrote 30 regimes" in capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in REGIMES.glob("*.yaml")}
    assert (tmp_path / "mixsize144_b.yaml").read_text() == Path(file("mixsize144_b")).read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--regime", file("mixsize144_d"), "--timm"], r"mixsize144_d.yaml: timm cannot express .* has D = 5"),
        (["--regime", file("fixed"), "--base", "224", "--out", "x"], r"--base 224: expected size x batch"),
        (["--regime", file("fixed"), "--base", "224x0", "--out", "x"], r"--base 224x0: B must be a whole number"),
        (
            ["--regime", file("fixed"), "--base", "200x8", "--out", "x"],
            r"base size 200 is not a multiple of the stride 32",
        ),
        (["--regime", file("fixed")], r"needs either --timm, or --base with --out"),
        (["--regime", file("fixed"), "--base", "224x8"], r"needs either --timm, or --base with --out"),
        ([], r"give either --regime FILE"),
    ],
)
def test_bad_input_is_one_sentence(args, message):
    with pytest.raises(InputError, match=message):
        export.main(args)
