"""A trained network made ready for use: written as safetensors, torch.export program or ONNX, and compared.

S as in ``regime.shapes``. Pixels from 0 to 1 go in: the normalisation is part of what is written.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixtune.errors import InputError
from mixtune.pick import Need, Trained, useful_sizes
from mixtune.training import data, networks
from mixtune.training.crops import CROP_RATIO
from mixtune.training.curve import Curve, Point
from mixtune.training.task import Classification
from mixtune.training.weights import load_weights

CLOSE = 1e-3  # how far the logits of a written network may be from the original's


class Deployed(nn.Module):
    """The network with its normalisation: pixels from 0 to 1, [N, 3, H, W], to logits [N, classes]."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, classes]."""
        logits: Tensor = self.network((pixels - self.mean) / self.std)
        return logits


def restore(run: Trained, S: int) -> tuple[Deployed, str]:
    """The trained network in evaluation mode, with the batch-norm statistics for S, and which those are.

    A run that was judged with recalibrated statistics gets those of S, chosen on its hold-out as in training. Raises
    InputError for missing or foreign weights.
    """
    task = Classification(run.config.task, "validation", "cpu", run.config.evaluate.recalibrate)
    dataset = data.load(run.config.task.dataset, run.config.task.data)
    network = networks.create(run.config.task.network, dataset.classes)
    load_weights(network, run.folder / "weights.safetensors", run.config.task.network)
    network.eval()
    chosen = "running"
    if run.config.evaluate.recalibrate is not None:
        task.evaluate(network, [S])
        chosen, statistics = task.chosen[S]
        buffers = dict(network.named_buffers())
        for name, value in statistics.items():
            buffers[name].copy_(value)
    return Deployed(network, dataset.mean, dataset.std).eval(), chosen


def description(run: Trained, point: Point, chosen: str, needs: Sequence[Need]) -> dict[str, Any]:
    """What whoever deploys the network must know, as plain values."""
    dataset = data.load(run.config.task.dataset, run.config.task.data)
    classes, files = dataset.classes, isinstance(dataset.train, data.Files)
    accuracy = {k: v for k, v in Curve((point,)).rows()[0].items() if k != "S"}
    return {
        "network": run.config.task.network,
        "dataset": run.config.task.dataset,
        "size": point.S,
        "judged": accuracy,
        "worth_using_at": useful_sizes(run.curve),
        "asked": [f"{n.kind} {n.said}" for n in needs],
        "batch_norm": chosen,
        "input": "RGB pixels from 0 to 1, [N, 3, H, W], resized to size x size; normalisation is inside",
        "output": "logits, [N, classes]",
        "classes": classes,
        "crop": CROP_RATIO if files else 1.0,
    }


def save(
    network: Deployed, folder: Path, sizes: Sequence[int], formats: Sequence[str], about: dict[str, Any]
) -> list[Path]:
    """Write the network in these formats beside deploy.yaml; every written one is run at every size and compared.

    Raises InputError where it cannot be written, a library is missing, or a written network says something else.
    """
    import yaml

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "deploy.yaml").write_text(
            yaml.safe_dump(about, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        paths = [folder / "deploy.yaml"]
        paths.extend(WRITERS[name](network, folder, sizes) for name in formats)
    except OSError as err:
        raise InputError(f"--network {folder}: cannot be written to ({err.strerror})") from None
    return paths


def _safetensors(network: Deployed, folder: Path, sizes: Sequence[int]) -> Path:
    from safetensors.torch import save_file

    path = folder / "network.safetensors"
    state = {k: v.contiguous() for k, v in network.network.state_dict().items()}
    means = {k: ",".join(str(x) for x in getattr(network, k).flatten().tolist()) for k in ("mean", "std")}
    save_file(state, path, metadata=means)
    return path


def _torch(network: Deployed, folder: Path, sizes: Sequence[int]) -> Path:
    path = folder / "network.pt2"
    torch.export.save(program(network, sizes), path)
    loaded = torch.export.load(path).module()
    _check(network, lambda x: loaded(x), sizes, "torch.export")
    return path


def _mlflow(network: Deployed, folder: Path, sizes: Sequence[int]) -> Path:
    import yaml

    from mixtune.serving import save_model

    if not (folder / "network.pt2").exists():
        _torch(network, folder, sizes)
    return save_model(folder, yaml.safe_load((folder / "deploy.yaml").read_text(encoding="utf-8")))


def program(network: Deployed, sizes: Sequence[int]) -> torch.export.ExportedProgram:
    """The network as a torch.export program with batch, height and width open. [N, 3, H, W] -> [N, classes]

    Raises InputError for a network whose sizes cannot be left open.
    """
    H, W = 2 * max(sizes), 2 * max(sizes) + 32  # unlike each other and any size, so that none of them is fixed
    open_ = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    try:
        return torch.export.export(network, (torch.rand(2, 3, H, W),), dynamic_shapes=(open_,))
    except Exception as err:
        cause = str(err).split("\n")[0]
        raise InputError(f"--formats torch: this network cannot be exported with open sizes ({cause})") from None


def _onnx(network: Deployed, folder: Path, sizes: Sequence[int]) -> Path:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter needs it, and says so less clearly)
    except ImportError as err:
        raise InputError(f"--formats onnx needs onnx, onnxscript and onnxruntime ({err}); pip install them") from None
    path = folder / "network.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = torch.onnx.export(
            program(network, sizes), input_names=["pixels"], output_names=["logits"], dynamo=True, verbose=False
        )
    assert written is not None
    written.save(path, external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    _check(network, lambda x: torch.from_numpy(session.run(None, {"pixels": x.numpy()})[0]), sizes, "onnxruntime")
    return path


@torch.no_grad()
def _check(network: Deployed, other: Callable[[Tensor], Tensor], sizes: Sequence[int], what: str) -> None:
    """Run both at every size, with batches of one and three. Raises InputError where they do not agree."""
    generator = torch.Generator().manual_seed(0)
    for S in sizes:
        for n in (1, 3):
            x = torch.rand(n, 3, S, S, generator=generator)
            try:
                off = float((other(x) - network(x)).abs().max())
            except Exception as err:
                cause = str(err).split("\n")[0]
                raise InputError(f"{what} cannot run the network at {S} px ({cause}); leave that size out") from None
            if not off <= CLOSE:
                raise InputError(f"{what} gives other logits than PyTorch at {S} px (off by {off:.2g})")


WRITERS: dict[str, Callable[[Deployed, Path, Sequence[int]], Path]] = {
    "safetensors": _safetensors,
    "torch": _torch,
    "onnx": _onnx,
    "mlflow": _mlflow,
}
