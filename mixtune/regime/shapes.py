"""BatchShape: the input of one training step.

S  image side in pixels (square)            views   B*D, images through the network in one step
B  distinct images in the batch             pixels  S^2*B*D, the compute of one step
D  augmented copies of each image
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class BatchShape:
    """Input of one step: B distinct images, D augmented copies of each, at S x S pixels.

    Source: MixSize (Hoffer et al. 2019), "Training with multiple image scales": the triple (S, B, D).
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by pydantic, a plain dict on purpose)

    S: int
    B: int
    D: int = 1

    def __post_init__(self) -> None:
        for name in ("S", "B", "D"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")

    @property
    def views(self) -> int:
        """Images through the network in one step: B*D."""
        return self.B * self.D

    @property
    def pixels(self) -> int:
        """Compute of one step: S^2*B*D (proportional to the multiply-accumulates of a ConvNet)."""
        return self.S**2 * self.B * self.D

    def resized(self, S: int, split: float) -> BatchShape:
        """Return this shape at size S, with (nearly) the same pixels.

        ``split`` divides the compute that a smaller S frees: 1 gives it all to B (MixSize B+), 0 all to D (MixSize D+),
        0.5 half of its logarithm to each. B absorbs the rounding of D, so the pixels are within half an image, S^2*D/2,
        of this shape's (the authors' own rounding is off by -27 % to +65 % for D+). Raise ValueError for a split
        outside [0, 1].
        """
        if not 0.0 <= split <= 1.0:
            raise ValueError(f"split must lie between 0 (more copies) and 1 (larger batches), not {split!r}")
        gain = (self.S / S) ** 2
        D = max(1, round(self.D * gain ** (1.0 - split)))
        B = max(1, round(self.pixels / (S**2 * D)))
        return BatchShape(S, B, D)

    def __str__(self) -> str:
        """Return ``224x256`` for S x B, and ``96x256x5`` for S x B x D where there are copies."""
        return f"{self.S}x{self.B}" if self.D == 1 else f"{self.S}x{self.B}x{self.D}"


def snap_to_stride(size: float, stride: int) -> int:
    """Return the multiple of ``stride`` nearest to ``size``, at least one stride; a tie goes to the even multiple.

    At multiples of the total stride, S^2 is within 0.3 % of a ConvNet's true cost; elsewhere it is up to 22 % off.
    Raise ValueError for a stride below 1.
    """
    if stride < 1:
        raise ValueError(f"stride must be at least 1, not {stride!r}")
    return max(stride, round(size / stride) * stride)
