"""Weight files: safetensors, or PyTorch files that hold tensors and nothing else. Loading executes nothing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from mixtune.errors import InputError


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Names and tensors of a weight file or of a run's checkpoint. Raises InputError when it is missing or damaged."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
        if "engine" in found:  # a run's checkpoint: what is evaluated
            found = found["engine"].get("average") or found["engine"]["weights"]
        found = found.get("state_dict", found)
        if not found or not all(isinstance(v, Tensor) for v in found.values()):
            raise TypeError("no tensors")
        return dict(found)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception:  # damaged files fail in many ways, inside torch, zip, pickle and safetensors
        raise InputError(f"{path} is no whole weight file (truncated, or more than tensors in it)") from None


def load_weights(network: nn.Module, path: str | Path, name: str, new_head: bool = False) -> None:
    """Put a file's weights into the network ``name``.

    new_head: keep the network's own last layer where the file's has another number of classes. Raises InputError when
    the file is of another network.
    """
    found, own = read_weights(path), network.state_dict()
    if new_head:
        linear = {n for n, m in network.named_modules() if isinstance(m, nn.Linear)}
        other = {k for k in own if k in found and found[k].shape != own[k].shape}
        head = {k for k in other if k.rpartition(".")[0] in linear and found[k].shape[1:] == own[k].shape[1:]}
        found = {k: own[k] if k in head else v for k, v in found.items()}
    strangers = sorted(set(found) ^ set(own)) or sorted(k for k in own if found[k].shape != own[k].shape)
    if strangers:
        raise InputError(
            f"{path} holds the weights of another network than {name} (they differ in {len(strangers)} tensors, "
            f"first {strangers[0]})"
        )
    network.load_state_dict(found)
