"""The loader's benchmark from start to end, in small, and the table that is made of what it wrote."""

import re

import numpy as np
import pytest
from PIL import Image

from benchmarks import common, loader, loader_table


@pytest.mark.slow
def test_what_the_benchmark_writes_becomes_the_table(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for i in range(132):  # more than the largest batch
        place = tmp_path / "images" / ("val" if i < 4 else "train") / f"c{i % 2}" / f"{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(place)
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(loader, "SIZES", (96, 128))
    monkeypatch.setattr(loader, "MOSAICS", {(300, 250): 70})
    monkeypatch.setattr(loader, "MIXTURE", loader.MIXTURE[:1])
    assert loader.main(["--data", str(tmp_path / "images"), "--repeats", "1", "--images", "64"]) == 0
    assert re.search("224 x 224.*128 px.*2.*3", capsys.readouterr().out.splitlines()[-1])
    table = loader_table.table(tmp_path).splitlines()
    assert table[2] == "| goal / aim at 128 px | | | 2 / 3 | 5 / 10 | 5 / 10 |"
    assert [line.split(" | ")[:2] for line in table[3:7]] == [
        ["| 224 x 224 photographs", "128 px"],
        ["| 224 x 224 photographs", "96 px"],
        ["| 300 x 250 mosaics", "128 px"],
        ["| 300 x 250 mosaics", "224 px"],
    ]
    assert re.search(r"D = 4\b.*\b1\.000\b.*1\.01\b.*\b1\b", table[-1])
