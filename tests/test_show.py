import re
import subprocess
import sys
from pathlib import Path

import pytest

from mixtune import show
from mixtune.errors import InputError
from mixtune.regime import BatchShape, CostTable
from mixtune.regime.files import load_regime

ROOT = Path(__file__).parents[1]
FILES = sorted(str(p) for p in (ROOT / "search_spaces" / "regimes").glob("*.yaml"))


def file(name):
    return str(ROOT / "search_spaces" / "regimes" / f"{name}.yaml")


def test_every_published_regime_is_shown_with_its_source(capsys):
    assert show.main([*FILES, "--no-figure"]) == 0
    out = capsys.readouterr().out
    for path in FILES:
        regime, _ = load_regime(path)
        assert f"{regime.name}: " in out
        assert regime.source in out
    assert re.search(r"\b200 epochs.*50,000 .*32x64\b", out)
    assert re.search(r"\b90 epochs.*1,281,167 .*224x256\b", out)


def test_markdown_draws_nothing_and_prints_a_row_per_regime(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    show.main([*FILES, "--markdown"])
    assert sum(line.startswith("| ") for line in capsys.readouterr().out.splitlines()) == len(FILES) + 2
    assert not list(tmp_path.iterdir())


def test_the_figure_is_written_twice_and_does_not_depend_on_the_day(capsys, tmp_path):
    files = [file("mixsize144_d"), file("window"), file("fixed")]
    for stem in ("a", "deeper/b"):
        show.main([*files, "--figure", str(tmp_path / stem)])
    assert {"a.svg", "a.png"} <= set(re.findall(r"\ba\.\w+", capsys.readouterr().out))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "deeper" / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_budget_in_seconds(capsys, tmp_path):
    seconds = {BatchShape(96, 1394): 0.4, BatchShape(224, 256): 0.2}
    CostTable("seconds", seconds, "a test").save(tmp_path / "seconds.yaml")
    show.main([file("entr_stepwise"), "--cost", str(tmp_path / "seconds.yaml"), "--total", "3600", "--no-figure"])
    lines = capsys.readouterr().out.splitlines()
    assert "seconds" in lines[0]
    # Half an hour on each of the phases.
    assert [line.split()[5] for line in lines[4:6]] == ["4,500", "9,000"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.yaml"], r"nowhere\.yaml"),
        ([file("fixed"), "--total", "3"], r"--total.*--cost"),
        ([file("fixed"), "--epochs", "0"], r"fixed\.yaml: epochs .*0\.0"),
        ([file("fixed"), "--epochs", "0.001", "--samples", "1000"], r"fixed\.yaml: phase 1\b.*0\.001"),
        ([file("fixed"), "--samples", "0"], r"--samples .*1.*0"),
        ([], r"\bFILE\b"),
    ],
)
def test_bad_input_is_one_sentence(args, message):
    with pytest.raises(InputError, match=message):
        show.main([*args, "--no-figure"])


def test_the_command_exits_with_code_two():
    command = [sys.executable, "-m", "mixtune.show", "nowhere.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"error: nowhere\.yaml: .*\n", done.stderr)
    assert done.stdout == ""


def test_tables_need_no_matplotlib():
    script = "import sys; sys.modules['matplotlib'] = None; from mixtune.show import main; main(sys.argv[1:])"
    run = [sys.executable, "-c", script, file("fixed")]
    subprocess.run([*run, "--no-figure"], cwd=ROOT, check=True, capture_output=True)
    refused = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert re.search("InputError: .*matplotlib.*--no-figure", refused.stderr)
