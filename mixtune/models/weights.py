"""Weight files: safetensors, or PyTorch files that hold tensors and nothing else. Loading executes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor, nn

from mixtune.errors import InputError

CLASS_NAMES = "class_names"  # in the header of a safetensors file: a list in JSON


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file or of a run's checkpoint, by name. Raise InputError when it is damaged."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
        if "engine" in content:  # a run's checkpoint: what is evaluated
            content = content["engine"].get("average") or content["engine"]["weights"]
        content = content.get("state_dict", content)
        if not content or not all(isinstance(v, Tensor) for v in content.values()):
            raise TypeError("no tensors")
        return dict(content)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception:  # damaged files fail in many ways, inside torch, zip, pickle and safetensors
        raise InputError(f"{path} is no whole weight file (truncated, or more than tensors in it)") from None


def naming(names: Sequence[str]) -> dict[str, str]:
    """Return what the header of a weight file says of the classes, in the order of the network's outputs."""
    return {CLASS_NAMES: json.dumps(list(names))} if names else {}


def class_names(path: str | Path) -> tuple[str, ...]:
    """Return the classes that a weight file names; none where it names none. The file must be whole."""
    if Path(path).suffix != ".safetensors":
        return ()
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(CLASS_NAMES, "[]")
    try:
        return tuple(str(name) for name in json.loads(text))
    except (ValueError, TypeError):  # another program's idea of it
        return ()


def load_weights(
    network: nn.Module, path: str | Path, name: str, classes: Sequence[str] = (), new_head: bool = False
) -> None:
    """Put a file's weights into the network ``name``, which is to tell ``classes`` apart (their names, where known).

    new_head: keep the network's own last layer where the file's is for other classes. Raise InputError when the file
    is of another network or for other classes.
    """
    weights, own, named = read_weights(path), network.state_dict(), class_names(path)
    other_classes = bool(named and classes) and named != tuple(classes)
    if other_classes and not new_head:
        theirs, ours = next((a, b) for a, b in zip_longest(named, classes) if a != b)
        raise InputError(
            f"{path} holds the weights of a network for other classes than this task's: {len(named)}, and here are "
            f"{len(classes)}; the first that differs is {theirs or 'missing'} there and {ours or 'missing'} here"
        )
    if new_head:
        linear = [n for n, m in network.named_modules() if isinstance(m, nn.Linear)]
        other = {k for k in own if k in weights and weights[k].shape != own[k].shape}
        head = {k for k in other if k.rpartition(".")[0] in linear and weights[k].shape[1:] == own[k].shape[1:]}
        if other_classes:
            head |= {k for k in own if k in weights and k.rpartition(".")[0] in linear[-1:]}
        weights = {k: own[k] if k in head else v for k, v in weights.items()}
    strangers = sorted(set(weights) ^ set(own)) or sorted(k for k in own if weights[k].shape != own[k].shape)
    if strangers:
        raise InputError(
            f"{path} holds the weights of another network than {name} (they differ in {len(strangers)} tensors, "
            f"first {strangers[0]})"
        )
    network.load_state_dict(weights)
