"""The page stands on its own, says what may be said, and fits a phone, a screen and paper."""

import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from analysis import efficiency, report, report_text
from analysis.add_runs import main as record
from analysis.study_runs import read_study
from mixtune.errors import InputError
from mixtune.execution.trial_config import make_candidate
from tests.analysis.conftest import POINT, curve
from tests.analysis.test_commands import repeated
from tests.commands import module_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """The tags, what they point to, the text, and whether everything that opens is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def written(uri, out):
    assert report.main(["--study", "tiny", "--tracking-uri", uri, "--out", str(out)]) == 0
    return (out / "report.html").read_text()


def texts(table):
    """The text of every cell of a table."""
    return [cell.text for row in table.rows for cell in row]


@pytest.fixture(scope="module")
def whole(study, tmp_path_factory):
    """The folder with the page of a study."""
    folder = tmp_path_factory.mktemp("page")
    written(study.uri, folder)
    return folder


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(whole):
    text = (whole / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert len(page.links) == 3
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "<script" not in text
    assert "url(" not in text
    words = " ".join(page.words)
    for said in ("How should cifar_resnet8 mix image sizes", "1 epoch at the base shape 8x32", "fixed size", "pruned"):
        assert said in words
    assert [p.name for p in whole.iterdir()] == ["report.html"]


def test_names_with_markup_show_as_text(study):
    name = '<script>alert("a & b")</script>'
    text = report.render(replace(read_study(study.uri, "tiny"), name=name))
    assert "<script" not in text
    assert "<p class=" in text  # the page's own markup is not escaped
    assert name in " ".join(Page(text).words)


def test_one_run_each_claims_nothing(study):
    said = report_text.answer(read_study(study.uri, "tiny"))
    assert said.startswith("searched #6 is best: it scores 8")
    assert "points against the best published regime, multi-scale VBS" in said
    assert "the noise between seeds may well be as large" in said


@pytest.mark.parametrize(
    ("fixed", "verdict"), [((0.50, 0.52, 0.51), "more than noise"), ((0.58, 0.66, 0.59), "not more than noise")]
)
def test_seeds_decide_what_is_claimed(made, tmp_path, fixed, verdict):
    made.trial(0, "fixed", curve(0.5, 0.6))
    made.trial(1, "searched", curve(0.7, 0.7))
    made.trial(2, "multiscale", curve(0.9, 0.9))
    runs = [
        repeated(made, 0, [curve(a, a) for a in fixed], tmp_path / "a"),
        repeated(made, 1, [curve(a, a) for a in (0.62, 0.63, 0.64)], tmp_path / "b"),
    ]
    record(["--study", "tiny", "--tracking-uri", made.uri, *runs])
    study = read_study(made.uri, "tiny")
    said = report_text.answer(study)
    assert said.startswith("searched #1 is best: it scores 63.00 ± 1.00 %")
    assert f": {verdict} (paired t-test over 3 seeds" in said
    # What was run once and judged on other images is said not to compare, however well it looks.
    assert "not comparable" in texts(report_text.comparison_table(study))
    assert any("multi-scale VBS; these do not compare" in line for line in report_text.uncertainty(study))


def proven(made, scores, winner, fixed="COMPLETE"):
    """Record a study's final: {trial: top-1 by seed}, and fresh seeds of trial 1, and of 0 if it was pruned."""
    made.trial(0, "fixed", curve(0.5, 0.6), fixed)
    made.trial(1, "searched", curve(0.9, 0.9), split=0.1)
    made.trial(2, "searched", curve(0.7, 0.7))
    made.trial(3, "multiscale", curve(0.8, 0.8))
    published = {0: "fixed", 3: "multiscale"}
    runs = [(n, s, "final", a) for n, each in scores.items() for s, a in enumerate(each)]
    fresh = [(n, s, "leaders", a) for n, a in ((1, 0.6), (0, 0.55)) for s in (1, 2) if n or fixed == "PRUNED"]
    for n, seed, round_, top1 in [*runs, *fresh]:
        point = made.space.published_params(published[n], 4) if n in published else POINT
        if n == 1:
            point = point | {"split": 0.1}
        noted = {"repeat": {"of": n, "seed": seed, "round": round_}}
        noted |= {"published": published[n]} if n in published else {}
        repeat = make_candidate(made.space, n, point, noted, made.folder)
        made.tracker.ended(repeat, "COMPLETE", top1, "", curve(top1, top1))
    summary = {"score": 0.7, "trial": winner, "chosen": "the best mean over 2 fresh seeds", "verdict": "said"}
    made.summarise(summary)
    assert made.tracker.flush()
    return read_study(made.uri, "tiny")


def test_a_final_names_the_winner_that_was_chosen_before_it_and_what_the_test_set_says(made, tmp_path):
    study = proven(made, {0: (0.50, 0.53, 0.50), 2: (0.72, 0.74, 0.73), 3: (0.73, 0.72, 0.745)}, winner=2)
    assert report_text.best_first(study)[0].number == 2
    said = report_text.answer(study)
    assert said.startswith("searched #2 wins: on the test set it scores 73.00 ± 1.00 % by training on")
    assert said.endswith(
        "; searched #2 is better than fixed size, and not distinguishable from multi-scale VBS at this noise (paired "
        "t-test over 3 seeds, 5 % level, p adjusted by Holm's method for 2 comparisons)."
    )
    assert any(
        "chosen before the test set was read: the best mean over 2 fresh" in line
        for line in report_text.uncertainty(study)
    )
    assert "searched #1" not in texts(report_text.comparison_table(study))  # a leader that fresh seeds did not choose
    shown = {t.number: t.curve.at(8).metrics["top1"] for t in study.tested().trials}
    assert shown == pytest.approx({0: 0.51, 2: 0.73, 3: (0.73 + 0.72 + 0.745) / 3})
    _, use = report.commands(study)
    assert len(use) == 1
    assert "searched2" in use[0]
    assert "searched #2 wins" in written(made.uri, tmp_path)


def test_a_published_regime_that_the_search_pruned_stands_with_its_runs_of_the_final(made, tmp_path):
    study = proven(made, {0: (0.81, 0.83), 2: (0.72, 0.74), 3: (0.70, 0.71)}, winner=0, fixed="PRUNED")
    assert study.states == {"COMPLETE": 3, "PRUNED": 1}
    assert [(t.family, t.pruned) for t in study.shown] == [("fixed", True), ("multiscale", False), ("searched", False)]
    assert study.winner.family == "fixed"
    assert study.winner.curve.at(8).metrics["top1"] == pytest.approx(0.55)  # of fresh seeds, and not of half the budget
    assert study.winner.judge == "validation"
    tested = {t.number: t.curve.at(8).metrics["top1"] for t in study.tested().trials}
    assert tested == pytest.approx({0: 0.82, 2: 0.73, 3: 0.705})
    assert report_text.answer(study).startswith("fixed size wins: on the test set it scores 82.00")
    assert "fixed" in written(made.uri, tmp_path)
    _, lines = efficiency.draw_study(study, tmp_path)
    assert "left out: fixed, which the search pruned: a final keeps no times" in lines
    assert len(efficiency.draw_study(study, tmp_path, "inference")[1]) == 1


def test_the_page_tells_what_is_missing_of_a_final_and_how_early_scores_ranked(made, tmp_path):
    proven(made, {0: (0.72, 0.74), 2: (0.73, 0.72)}, winner=2)
    assert "Pruning trusts early scores" not in written(made.uri, tmp_path)
    told = {"failed": "fixed, seed 2, for the test set: its worker died"}
    made.summarise(told | {"score": 0.7, "trial": 2}, {"mixtune.rank_correlation": "0.50 at 11 % (n = 14)"})
    assert made.tracker.flush()
    text = written(made.uri, tmp_path)
    assert "Pruning trusts early scores: 0.50 at 11 % (n = 14)." in text
    assert "fixed, seed 2, for the test set: its worker died" in text


def test_a_final_that_shows_nothing_says_that(made):
    study = proven(made, {0: (0.72, 0.74, 0.73), 2: (0.73, 0.72, 0.74), 3: (0.74, 0.73, 0.72)}, winner=2)
    assert "; no regime is distinguishable from searched #2 at this noise (paired" in report_text.answer(study)


def test_a_final_that_a_later_search_left_behind_is_not_the_answer(made):
    proven(made, {0: (0.72, 0.74), 2: (0.73, 0.72)}, winner=2)
    made.summarise({"score": 0.7, "trial": 1, "verdict": ""})
    assert made.tracker.flush()
    assert read_study(made.uri, "tiny").winner is None


def test_its_commands_name_files_that_are_there_and_flags_that_parse(study, monkeypatch):

    from mixtune.cli import Parser

    rerun, use = report.commands(read_study(study.uri, "tiny"))
    for line in (*rerun, *use):
        words = shlex.split(line)
        module = module_of(words[2])

        def parse(self, args=None, namespace=None):
            super(Parser, self).parse_args(args, namespace)
            raise KeyboardInterrupt

        monkeypatch.setattr(Parser, "parse_args", parse)
        with pytest.raises(KeyboardInterrupt):
            module.main(words[3:])
    assert shlex.split(use[0])[-1] == "5"
    assert str(study.folder / "final" / "searched6" / "seed0") in shlex.split(use[1])


def test_a_place_that_cannot_be_written_is_one_sentence(study, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        written(study.uri, tmp_path / "file" / "x")


def browse(*arguments, profile):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={profile}"]
    done = subprocess.run([CHROMIUM, *flags, *arguments], capture_output=True, timeout=120)
    assert done.returncode == 0
    return done.stdout.decode()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_it_fits_a_phone_and_paper(whole, tmp_path):
    text = (whole / "report.html").read_text()
    # A frame of a phone's width; what sticks out of the page (not of its scrolling boxes) would make it wider.
    probe = "document.title = document.documentElement.scrollWidth + ' of ' + innerWidth"
    (tmp_path / "probe.html").write_text(text.replace("</body>", f"<script>{probe}</script></body>"))
    frame = '<iframe src="probe.html" width="390" height="800" onload="document.title = this.contentDocument.title">'
    (tmp_path / "phone.html").write_text(f"<!doctype html><title>?</title>{frame}</iframe>")
    seen = browse(
        "--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom",
        f"file://{tmp_path}/phone.html", profile=tmp_path / "profile",
    )  # fmt: skip
    width, room = map(int, re.search(r"<title>(\d+) of (\d+)</title>", seen).groups())
    assert width <= room == 390
    pdf = tmp_path / "report.pdf"
    browse(f"--print-to-pdf={pdf}", f"file://{whole}/report.html", profile=tmp_path / "profile")
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes()))
    assert 1 <= pages <= 3
