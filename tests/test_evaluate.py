import csv

import pytest

from mixtune import evaluate, train
from mixtune.config import to_plain
from mixtune.errors import InputError
from mixtune.regime.files import save_regime
from tests.training.test_loop import config, regime

pytestmark = pytest.mark.arithmetic


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    save_regime(folder / "regime.yaml", regime(), to_plain(config()))
    train.main(["--regime", str(folder / "regime.yaml"), "--out", str(folder / "out")])
    return folder / "out"


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_curve_of_training_comes_out_again_to_the_bit(trained, tmp_path, capsys):
    assert evaluate.main(["--weights", str(trained), "--out", str(tmp_path)]) == 0
    assert rows(tmp_path / "curve.csv") == rows(trained / "curve.csv")
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert "hold-out" in capsys.readouterr().out


def test_any_sizes_with_latency_and_corruptions(trained, tmp_path, capsys):
    flags = ["--sizes", "20,8", "--latency", "4", "--corruptions", "8", "--recalibrate", "--test"]
    assert evaluate.main(["--weights", str(trained), *flags, "--out", str(tmp_path)]) == 0
    curve = rows(tmp_path / "curve.csv")
    assert [r["S"] for r in curve] == ["8", "20"]
    assert all(float(r["latency"]) > 0 for r in curve)
    assert {r["batch"] for r in curve} == {"4"}
    assert len(rows(tmp_path / "corruptions.csv")) == 30
    out = capsys.readouterr().out
    assert "test set" in out
    assert "batch 4" in out


def test_a_run_is_judged_with_its_own_statistics_and_picked_by_a_measured_latency(trained, tmp_path, capsys):
    """Trained on everything, with statistics chosen per size: its curve comes out again, now with latency."""
    from mixtune import export

    out = tmp_path / "out"
    flags = ["--set", "evaluate.recalibrate.images=200", "--test", "--out", str(out)]
    train.main(["--regime", str(trained / "regime.yaml"), *flags])
    before = rows(out / "curve.csv")
    with pytest.raises(InputError, match=f"--weights {out}.*--test"):
        evaluate.main(["--weights", str(out)])
    with pytest.raises(InputError, match=f"mixtune.evaluate --weights {out} --test --latency BATCH --out {out}"):
        export.main(["--run", str(out), "--at-most", "900 ms"])
    flags = ["--test", "--latency", "2", "--corruptions", "16", "--out", str(out)]
    evaluate.main(["--weights", str(out), *flags])
    after = rows(out / "curve.csv")
    assert [{k: r[k] for k in before[0]} for r in after] == before
    capsys.readouterr()
    assert export.main(["--run", str(out), "--at-most", "900 ms"]) == 0
    assert "ms" in capsys.readouterr().out


def test_a_checkpoint_and_a_bare_file_work_with_a_space(trained, tmp_path, capsys, tiny, space_file):
    space = space_file(tiny | {"task": to_plain(config().task)})
    for name in ("checkpoint.pt", "weights.safetensors"):
        out = tmp_path / name
        flags = ["--space", str(space), "--sizes", "8,12", "--out", str(out), "--set", "device=cpu"]
        assert evaluate.main(["--weights", str(trained / name), *flags]) == 0
        assert [r["top1"] for r in rows(out / "curve.csv")] == [r["top1"] for r in rows(trained / "curve.csv")]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sizes", "8,x"], "--sizes.*'8,x'"),
        (["--sizes", "9"], "--sizes 9: 9 px"),
        (["--corruptions", "9"], "--corruptions 9: 9 px"),
        (["--corruptions", "0"], "--corruptions 0: S.*0"),
        (["--mirror"], "--mirror.*digits"),
        (["--latency", "0"], "--latency.*1.*0"),
        (["--set", "task.network=cifar_resnet14"], "weights.*cifar_resnet14"),
    ],
)
def test_bad_input_is_one_sentence(trained, flags, message):
    with pytest.raises(InputError, match=message):
        evaluate.main(["--weights", str(trained), *flags])


def test_missing_and_truncated_files_are_one_sentence(trained, tmp_path):
    with pytest.raises(InputError, match=r"--weights.*weights\.safetensors.*--space"):
        evaluate.main(["--weights", str(trained / "weights.safetensors")])
    (tmp_path / "weights.safetensors").write_bytes((trained / "weights.safetensors").read_bytes()[:1000])
    (tmp_path / "regime.yaml").write_bytes((trained / "regime.yaml").read_bytes())
    with pytest.raises(InputError, match=rf"{tmp_path}/weights\.safetensors"):
        evaluate.main(["--weights", str(tmp_path)])
