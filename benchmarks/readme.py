"""Blocks of the README that a command writes: they stand between <!-- NAME:begin --> and <!-- NAME:end -->."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def replaced(text: str, name: str, block: str) -> str:
    """README text with the block of this name replaced. Raises ValueError when there is no such block."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->\n"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"README.md has no block {name}")
    return before + begin + block + end + after


def commit() -> str:
    """The commit that is checked out; empty outside a repository."""
    git = shutil.which("git") or "git"
    said = subprocess.run([git, "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    return said.stdout.strip()


def write(name: str, block: str) -> None:
    """Put a block into the README."""
    README.write_text(replaced(README.read_text(encoding="utf-8"), name, block), encoding="utf-8")
