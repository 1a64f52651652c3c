from pathlib import Path

from mixtune.regime import published
from mixtune.regime.shapes import BatchShape
from mixtune.search.callbacks import Candidate
from mixtune.study.console import Console


def test_what_a_trial_says_is_written_once():
    lines = []
    console = Console(4, None, lines.append)
    regime = published("fixed", BatchShape(8, 32, 1), (4, 8), 4)
    for number, said in ((3, ["steps are compiled: 8x32", "1 image is greyscale"]), (4, ["1 image is greyscale"])):
        trial = Candidate(number, regime, {}, Path(), "fixed")
        console.reported(trial, {"last": True, "progress": 1.0, "said": said}, 0.5)
    assert [line.strip() for line in lines] == ["#3: steps are compiled: 8x32", "#3: 1 image is greyscale"]
