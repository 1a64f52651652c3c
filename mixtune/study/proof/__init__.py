"""Proof: is the winner better than the published regimes: leaders, repeats with other seeds, tests, the verdict."""
