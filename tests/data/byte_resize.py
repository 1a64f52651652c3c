"""How far apart pixels may lie that this project and torchvision resize."""

import torch

# Without AVX2 torchvision resizes bytes as floating-point numbers, which round otherwise: to the next of 255 levels.
LEVELS = 0 if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else 1


def furthest(a, b):
    """The largest difference of two byte images, in levels."""
    return int((torch.as_tensor(a).int() - torch.as_tensor(b).int()).abs().max())
