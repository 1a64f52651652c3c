"""A trained network is picked by need, and what is written says the same as what was trained, at every size."""

import sys

import pytest
import torch
import yaml
from safetensors import safe_open

from mixtune import deploy, export
from mixtune.deploy import Deployed
from mixtune.errors import InputError
from mixtune.pick import Need, Trained, pick, useful_sizes
from mixtune.training import networks
from mixtune.training.curve import Curve, Point


def run(*points):
    """A run that is nothing but a curve: (S, GMACs, top-1, latency)."""
    return Trained(None, None, Curve(tuple(Point(S, g, a, 1.0, 0.5, 0.1, latency=t) for S, g, a, t in points)))


SMALL = run((64, 0.5, 0.60, 0.001), (128, 2.0, 0.70, 0.004))
LARGE = run((64, 1.0, 0.65, 0.002), (128, 4.0, 0.80, 0.008))


@pytest.mark.parametrize(
    ("needs", "of", "S"),
    [
        ([], LARGE, 128),
        ([("at most", "1.5 GMACs")], LARGE, 64),
        ([("at most", "600 MMACs")], SMALL, 64),
        ([("at most", "2 GMACs")], SMALL, 128),  # a bound is met by what equals it
        ([("at most", "4 ms")], SMALL, 128),
        ([("at least", "65 %")], LARGE, 64),  # the cheapest that is accurate enough
        ([("at least", "62 %"), ("at most", "3 GMACs")], SMALL, 128),
    ],
)
def test_the_network_and_size_that_meet_the_need_are_picked(needs, of, S):
    found, point = pick([SMALL, LARGE], [Need.parse(*need) for need in needs])
    assert found is of
    assert point.S == S


@pytest.mark.parametrize(
    ("need", "message"),
    [
        (("at most", "fast"), "--at-most fast: expected a number and its unit, '1.5 GMACs'"),
        (("at most", "76 %"), "--at-most 76 %: expected a number and its unit"),
        (("at least", "3 ms"), "--at-least 3 ms: expected a number and its unit, '76 %'"),
        (("at most", "1.2.3 ms"), "1.2.3 is not a number"),
        (("at most", "0.1 GMACs"), "no network meets that; the nearest is 64 px with 60.00 % at 0.5 GMACs"),
        (("at least", "99 %"), "no network meets that; the nearest is 128 px with 80.00 % at 4 GMACs"),
        (("at most", "9 MiB"), "memory was not measured for these runs"),
    ],
)
def test_a_need_that_cannot_be_met_or_read_is_one_sentence(need, message):
    with pytest.raises(InputError) as err:
        pick([SMALL, LARGE], [Need.parse(*need)])
    assert message in str(err.value)


def test_sizes_that_a_smaller_one_beats_are_not_worth_using():
    assert useful_sizes(run((8, 1, 0.5, None), (12, 2, 0.4, None), (16, 3, 0.6, None)).curve) == [8, 16]


def test_what_is_written_says_what_was_trained(finished, tmp_path, capsys):
    arguments = ["--run", str(finished), "--network", str(tmp_path / "net")]
    assert export.main([*arguments, "--at-most", "1 MMACs"]) == 0
    assert "at most 1 MMACs" in capsys.readouterr().out
    about = yaml.safe_load((tmp_path / "net" / "deploy.yaml").read_text())
    assert about["size"] == 8
    assert about["batch_norm"] == "running"
    original, _ = deploy.restore(Trained.read(finished), 8)
    program = torch.export.load(tmp_path / "net" / "network.pt2").module()
    with torch.no_grad():
        for N, H, W in ((1, 8, 8), (5, 12, 12), (2, 20, 28)):
            x = torch.rand(N, 3, H, W, generator=torch.Generator().manual_seed(0))
            assert torch.allclose(program(x), original(x), atol=1e-5)
    with safe_open(tmp_path / "net" / "network.safetensors", "pt") as file:
        state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a mapping)
        assert file.metadata()["mean"].startswith("0.305")
    assert state.keys() == original.network.state_dict().keys()
    assert all(torch.equal(v, original.network.state_dict()[k]) for k, v in state.items())


def test_the_deployed_network_has_the_accuracy_of_the_curve(finished):
    """Pixels from 0 to 1 through the written network give the top-1 that the run reported."""
    from mixtune.training.pixels import pixel_eval_batches
    from mixtune.training.task import Classification

    trained = Trained.read(finished)
    network, _ = deploy.restore(trained, 8)
    task = Classification(trained.config.task)
    with torch.no_grad():
        right = [
            (network(x / 255).argmax(1) == y).double().mean() for x, y in pixel_eval_batches(task._held_out, 8, 10_000)
        ]
    assert float(right[0]) == pytest.approx(trained.curve.at(8).top1)


def test_a_network_judged_with_recalibrated_statistics_is_deployed_with_them(finished, tmp_path, monkeypatch):
    from mixtune.training import task
    from mixtune.training.calibration import Recalibration

    trained = Trained.read(finished)
    config = trained.config
    object.__setattr__(config.evaluate, "recalibrate", Recalibration(("test",), 200))
    monkeypatch.setattr(task.calibration, "choose", lambda predictions, part: "test")
    network, chosen = deploy.restore(Trained(finished, config, trained.curve), 12)
    assert chosen == "test"
    object.__setattr__(config.evaluate, "recalibrate", None)
    plain_, _ = deploy.restore(Trained(finished, config, trained.curve), 12)
    changed = {k for k, v in network.network.state_dict().items() if not torch.equal(v, plain_.network.state_dict()[k])}
    assert changed
    assert all(k.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked") for k in changed)


def test_a_written_network_that_says_something_else_is_refused():
    network = Deployed(networks.create("cifar_resnet8", 10), (0.3,) * 3, (0.3,) * 3).eval()
    with pytest.raises(InputError, match="onnxruntime gives other logits than PyTorch at 8 px"):
        deploy._check(network, lambda x: network(x) + 0.01, [8], "onnxruntime")
    with pytest.raises(InputError, match=r"onnxruntime cannot run the network at 8 px \(no\)"):
        deploy._check(network, lambda x: (_ for _ in ()).throw(RuntimeError("no")), [8], "onnxruntime")


def test_onnx_agrees_at_every_size(finished, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export.main(["--run", str(finished), "--network", str(tmp_path), "--formats", "onnx"])
    assert (tmp_path / "network.onnx").stat().st_size > 100_000


def test_bad_input_is_one_sentence(finished, tmp_path, monkeypatch):
    for arguments, message in (
        (["--run", str(tmp_path), "--network", "x"], "regime.yaml: no such file"),
        (["--run", str(finished), "--network", str(tmp_path / "x"), "--formats", "torhc"], "did you mean 'torch'"),
        (["--network", "x"], "need --run FOLDER"),
        (["--at-least", "76 %"], "need --run FOLDER"),
        (["--run", str(finished), "--network", str(finished / "curve.csv" / "x")], "cannot be written to"),
    ):
        with pytest.raises(InputError, match=message):
            export.main(arguments)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="--formats onnx needs onnx, onnxscript and onnxruntime"):
        export.main(["--run", str(finished), "--network", str(tmp_path), "--formats", "onnx"])
