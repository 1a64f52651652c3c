"""Blocks of the README and docs/ that a command writes, each between <!-- NAME:begin --> and <!-- NAME:end -->."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def pages() -> list[Path]:
    """The README and the pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def page_of(name: str) -> Path:
    """The page that has the block of this name. Raises ValueError when there is no such block, or more than one."""
    found = [p for p in pages() if f"<!-- {name}:begin -->\n" in p.read_text(encoding="utf-8")]
    if len(found) != 1:
        raise ValueError(f"the README and docs/ have {len(found)} blocks {name}, not one")
    return found[0]


def _parts(name: str) -> tuple[str, str, str]:
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->\n"
    before, _, rest = page_of(name).read_text(encoding="utf-8").partition(begin)
    block, closed, after = rest.partition(end)
    if not closed:
        raise ValueError(f"{page_of(name).name}: block {name} has no end")
    return before + begin, block, end + after


def written(name: str) -> str:
    """The block of this name as it stands in its page. Raises ValueError as ``page_of`` does."""
    return _parts(name)[1]


def write(name: str, block: str) -> None:
    """Put a block into its page."""
    before, _, after = _parts(name)
    page_of(name).write_text(before + block + after, encoding="utf-8")


def commit() -> str:
    """The commit that is checked out; empty outside a repository, and where there is no git."""
    if (git := shutil.which("git")) is None:
        return ""
    said = subprocess.run([git, "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    return said.stdout.strip()
