"""The model that MLflow serves: images in, probabilities out, at the size that is asked for.

MLflow copies this file into the model, so it may use torch, numpy, safetensors and yaml, and nothing of mixtune.
"""

from __future__ import annotations

import math
from typing import Any

import mlflow
import numpy as np
import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional as F


class SizedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A torch.export program with open height and width; ``params={"size": S}`` sets the inference size."""

    def load_context(self, context: Any) -> None:
        """Load the program and its description."""
        program = torch.export.load(context.artifacts["program"])
        self.network, self.at = program.module(), {}
        if "statistics" in context.artifacts:  # sizes with batch-norm statistics of their own
            by_size = load_file(context.artifacts["statistics"])
            for S in sorted({int(name.partition("/")[0]) for name in by_size}):
                own = {k.partition("/")[2]: v for k, v in by_size.items() if k.startswith(f"{S}/")}
                self.at[S] = _with_buffers(program.module(), own)
        with open(context.artifacts["about"], encoding="utf-8") as file:  # noqa: PTH123 (pathlib is not shorter here)
            self.about = yaml.safe_load(file)

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Return probabilities [N, classes] of images uint8 [N, H, W, 3].

        ``size`` 0 or absent: the size that the network was picked for.
        """
        S = int((params or {}).get("size") or self.about["size"])
        pixels = torch.from_numpy(np.ascontiguousarray(model_input)).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            network = self.at.get(S, self.network)
            probabilities: np.ndarray = network(self._resized(pixels, S)).softmax(1).numpy()
        return probabilities

    def _resized(self, pixels: torch.Tensor, S: int) -> torch.Tensor:
        """Resize as in evaluation: the whole image to S x S, or the shorter side to S / crop and the middle cut out."""
        H, W = pixels.shape[-2:]
        to = [S, S]
        if self.about["crop"] < 1:
            shorter = math.floor(S / self.about["crop"])
            to = [max(S, round(H * shorter / min(H, W))), max(S, round(W * shorter / min(H, W)))]
        if tuple(to) != (H, W):
            pixels = F.interpolate(pixels, size=to, mode="bilinear", antialias=min(H, W) > min(to))
        y, x = (to[0] - S) // 2, (to[1] - S) // 2
        return pixels[..., y : y + S, x : x + S]


def _with_buffers(module: torch.nn.Module, values: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Return the module with other batch-norm statistics. Tensors are replaced, not written to: modules share them."""
    for name, value in values.items():
        owner, _, buffer = f"network.{name}".rpartition(".")
        module.get_submodule(owner).register_buffer(buffer, value)
    return module


mlflow.models.set_model(SizedModel())
