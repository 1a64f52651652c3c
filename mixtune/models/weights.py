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


def naming(names: Sequence[str]) -> dict[str, str]:
    """What a file of weights says of the classes that its network tells apart, in the order of its outputs."""
    return {CLASS_NAMES: json.dumps(list(names))} if names else {}


def class_names(path: str | Path) -> tuple[str, ...]:
    """The classes that a file of weights names; none where it does not say. The file must be whole."""
    if Path(path).suffix != ".safetensors":
        return ()
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        said = (file.metadata() or {}).get(CLASS_NAMES, "[]")
    try:
        return tuple(str(name) for name in json.loads(said))
    except (ValueError, TypeError):  # another program's idea of it
        return ()


def load_weights(
    network: nn.Module, path: str | Path, name: str, classes: Sequence[str] = (), new_head: bool = False
) -> None:
    """Put a file's weights into the network ``name``, which is to tell ``classes`` apart (their names, where known).

    new_head: keep the network's own last layer where the file's is for other classes. Raises InputError when the file
    is of another network or for other classes.
    """
    found, own, its = read_weights(path), network.state_dict(), class_names(path)
    other_classes = bool(its and classes) and its != tuple(classes)
    if other_classes and not new_head:
        there, here = next((a, b) for a, b in zip_longest(its, classes) if a != b)
        raise InputError(
            f"{path} holds the weights of a network for other classes than this task's: {len(its)}, and here are "
            f"{len(classes)}; the first that differs is {there or 'missing'} there and {here or 'missing'} here"
        )
    if new_head:
        linear = [n for n, m in network.named_modules() if isinstance(m, nn.Linear)]
        other = {k for k in own if k in found and found[k].shape != own[k].shape}
        head = {k for k in other if k.rpartition(".")[0] in linear and found[k].shape[1:] == own[k].shape[1:]}
        if other_classes:
            head |= {k for k in own if k in found and k.rpartition(".")[0] in linear[-1:]}
        found = {k: own[k] if k in head else v for k, v in found.items()}
    strangers = sorted(set(found) ^ set(own)) or sorted(k for k in own if found[k].shape != own[k].shape)
    if strangers:
        raise InputError(
            f"{path} holds the weights of another network than {name} (they differ in {len(strangers)} tensors, "
            f"first {strangers[0]})"
        )
    network.load_state_dict(found)
