"""The formats a network is written in: safetensors, torch.export program, ONNX, MLflow model; each is run and compared.

S as in ``regime.shapes``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixtune.deploy.network import STATISTICS, Deployed
from mixtune.errors import InputError

OUTPUT_TOLERANCE = 1e-3  # how far the logits of a written network may be from the original's


def save_format(
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
        paths = [folder / "deploy.yaml", *_statistics(network, folder)]
        paths.extend(WRITERS[name](network, folder, sizes) for name in formats)
    except OSError as err:
        raise InputError(f"--network {folder}: cannot be written to ({err.strerror})") from None
    return paths


def _statistics(network: Deployed, folder: Path) -> list[Path]:
    """Write the batch-norm statistics of other sizes, as SIZE/BUFFER; nothing where all take the network's own."""
    from safetensors.torch import save_file

    path = folder / STATISTICS
    path.unlink(missing_ok=True)
    if not network.statistics:
        return []
    # Clones: several sizes may take the same running statistics, and safetensors refuses tensors that share memory.
    each = {f"{S}/{k}": v.clone().contiguous() for S, values in network.statistics.items() for k, v in values.items()}
    save_file(each, path)
    return [path]


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

    from mixtune.deploy.serving import save_model  # which needs MLflow

    if not (folder / "network.pt2").exists():
        _torch(network, folder, sizes)
    return save_model(folder, yaml.safe_load((folder / "deploy.yaml").read_text(encoding="utf-8")))


def program(network: Deployed, sizes: Sequence[int]) -> torch.export.ExportedProgram:
    """Return the network as a torch.export program with batch, height and width open. [N, 3, H, W] -> [N, classes]

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
            if not off <= OUTPUT_TOLERANCE:
                raise InputError(f"{what} gives other logits than PyTorch at {S} px (off by {off:.2g})")


WRITERS: dict[str, Callable[[Deployed, Path, Sequence[int]], Path]] = {
    "safetensors": _safetensors,
    "torch": _torch,
    "onnx": _onnx,
    "mlflow": _mlflow,
}
