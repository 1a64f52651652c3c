"""The comparison of libraries from start to end, in small, and its table."""

import re

import numpy as np
import pytest
from PIL import Image

from benchmarks import common, libraries


@pytest.mark.slow
def test_what_the_benchmark_writes_becomes_the_table(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for i in range(12):
        place = tmp_path / "images" / ("val" if i < 4 else "train") / f"c{i % 2}" / f"{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (90, 80, 3), dtype=np.uint8)).save(place)
    blocks = {}
    for module in (common, libraries):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(libraries, "write", blocks.__setitem__)
    monkeypatch.setattr(libraries, "table", lambda table=libraries.table: table(tmp_path))
    monkeypatch.setattr(libraries.loader, "BATCH", 8)
    assert libraries.main(["--data", str(tmp_path / "images"), "--repeats", "1"]) == 0
    lines = blocks["libraries"].splitlines()
    assert lines[2].startswith("| decoding a JPEG, one core | Pillow | ")
    assert any(line.startswith("| | torchvision | ") for line in lines)
    assert any(line.startswith("| batches at 128 px, ") for line in lines)
    assert re.search(r"\b8\b.*\b80 x 90\b", lines[-1])
