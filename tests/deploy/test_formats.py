"""What is written says the same as what was trained, at every size."""

import sys

import pytest
import torch
import yaml
from safetensors import safe_open

from mixtune import export
from mixtune.deploy import formats
from mixtune.deploy.network import Deployed, restore
from mixtune.errors import InputError
from mixtune.models import registry
from mixtune.training.run_folder import FinishedRun

pytestmark = pytest.mark.arithmetic


def test_what_is_written_says_what_was_trained(finished, tmp_path, capsys):
    arguments = ["--run", str(finished), "--network", str(tmp_path / "net")]
    assert export.main([*arguments, "--at-most", "1 MMACs"]) == 0
    assert "at most 1 MMACs" in capsys.readouterr().out
    about = yaml.safe_load((tmp_path / "net" / "deploy.yaml").read_text())
    assert about["size"] == 8
    assert about["batch_norm"] == "running"
    original, *_ = restore(FinishedRun.read(finished), 8)
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
    from mixtune.data.in_memory import pixel_eval_batches
    from mixtune.tasks.classification import Classification

    trained = FinishedRun.read(finished)
    network, *_ = restore(trained, 8)
    task = Classification(trained.config.task)
    with torch.no_grad():
        right = [
            (network(x / 255).argmax(1) == y).double().mean() for x, y in pixel_eval_batches(task._held_out, 8, 10_000)
        ]
    assert float(right[0]) == pytest.approx(trained.curve.at(8).metrics["top1"])


def test_a_network_judged_with_recalibrated_statistics_is_deployed_with_them(finished, tmp_path, monkeypatch):
    from mixtune.evaluation.bn_recalibration import Recalibration
    from mixtune.tasks import classification as task

    trained = FinishedRun.read(finished)
    config = trained.config
    object.__setattr__(config.evaluate, "recalibrate", Recalibration(("test",), 200))
    monkeypatch.setattr(task.bn_recalibration, "choose", lambda predictions, part: "test")
    network, chosen, _ = restore(FinishedRun(finished, None, config, trained.curve), 12)
    assert chosen == {8: "test", 12: "test"}
    assert set(network.statistics) == {8}
    object.__setattr__(config.evaluate, "recalibrate", None)
    plain_, *_ = restore(FinishedRun(finished, None, config, trained.curve), 12)
    changed = {k for k, v in network.network.state_dict().items() if not torch.equal(v, plain_.network.state_dict()[k])}
    assert changed
    assert all(k.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked") for k in changed)


def test_sizes_that_share_their_statistics_are_written(tmp_path):
    shared = {"stem.1.running_mean": torch.arange(16.0)}
    network = Deployed(registry.create_network("cifar_resnet8", 10), (0.3,) * 3, (0.3,) * 3).eval()
    network.statistics = {8: shared, 12: shared}
    (path,) = formats._statistics(network, tmp_path)
    with safe_open(path, "pt") as file:
        assert sorted(file.keys()) == ["12/stem.1.running_mean", "8/stem.1.running_mean"]
        assert torch.equal(file.get_tensor("8/stem.1.running_mean"), shared["stem.1.running_mean"])


def test_a_written_network_that_says_something_else_is_refused():
    network = Deployed(registry.create_network("cifar_resnet8", 10), (0.3,) * 3, (0.3,) * 3).eval()
    with pytest.raises(InputError, match="onnxruntime gives other logits than PyTorch at 8 px"):
        formats._check(network, lambda x: network(x) + 0.01, [8], "onnxruntime")
    with pytest.raises(InputError, match=r"onnxruntime cannot run the network at 8 px \(no\)"):
        formats._check(network, lambda x: (_ for _ in ()).throw(RuntimeError("no")), [8], "onnxruntime")


def test_onnx_agrees_at_every_size(finished, tmp_path):
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
