"""Odd image files in a run, from the file to its records: training goes on, accuracies are without the unreadable."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mixtune.data import datasets as data
from mixtune.data import splits
from mixtune.data.file_issues import FileIssues
from mixtune.errors import InputError
from mixtune.regime import BatchShape, Budget, published
from mixtune.runtime.process_group import SINGLE_PROCESS
from mixtune.tasks.classification_config import ClassificationConfig
from mixtune.training.run import Evaluation, Run, TrainingConfig
from mixtune.training.run_folder import save_result
from tests.ranks import on_ranks

pytestmark = pytest.mark.arithmetic


@pytest.fixture
def folder(tmp_path):
    """Two classes that differ in brightness, 12 training and 5 test images of each."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 12), ("val", 5)):
        for label in range(2):
            (tmp_path / part / f"c{label}").mkdir(parents=True)
            for i in range(n):
                noise = rng.integers(0, 128, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(noise + np.uint8(127 * label)).save(tmp_path / part / f"c{label}" / f"{i:02}.jpg")
    return tmp_path


def damage(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def prepared(folder, sizes=(32,), judge="test", group=SINGLE_PROCESS, **task):
    config = TrainingConfig(
        task=ClassificationConfig("folder", "cifar_resnet8", data=str(folder), workers=0, **task),
        budget=Budget(2),
        evaluate=Evaluation(sizes, reports=2),
        threads=1,
        device="cpu",
    )
    return Run.prepare(published("fixed", BatchShape(32, 8), (32,), 4), config, judge, group)


def test_what_was_odd_reaches_the_report_and_the_result(folder):
    damage(folder / "train/c0/00.jpg")  # the first file of all
    damage(folder / "val/c1/04.jpg")
    Image.new("CMYK", (30, 30), (9, 9, 9, 9)).save(folder / "train/c0/04.jpg")
    Image.new("L", (30, 30), 9).save(folder / "train/c1/05.jpg")
    job = prepared(folder)
    report = list(job.reports(folder / "kept.pt"))[-1]
    expected = {"unreadable": 2, "CMYK": 1, "greyscale": 1, "not judged": 1}
    assert report.findings == expected
    save_result(folder / "out", job, report)
    said = yaml.safe_load((folder / "out/result.yaml").read_text())["images"]
    assert said == {"trained": 24, "judged": 10} | expected
    rows = [line.split("\t") for line in (folder / "out/images.tsv").read_text().splitlines()]
    assert [(name.removeprefix(f"{folder}/"), kind) for name, kind, _ in rows] == [
        ("path", "kind"),
        ("train/c0/00.jpg", "unreadable"),
        ("val/c1/04.jpg", "unreadable"),
        ("train/c0/04.jpg", "CMYK"),
        ("train/c1/05.jpg", "greyscale"),
    ]
    assert "truncated" in rows[1][2].lower()
    (again,) = list(prepared(folder).reports(folder / "kept.pt"))[-1:]
    assert again.findings == expected  # of a run that reads no file any more
    resumed = prepared(folder)
    list(resumed.reports(folder / "kept.pt"))
    assert resumed.task.file_issues.rows() == job.task.file_issues.rows()


def test_several_ranks_count_and_name_what_any_of_them_met(folder):
    for name in ("train/c0/03", "train/c1/07", "val/c0/01", "val/c1/03"):
        damage(folder / f"{name}.jpg")
    alone = prepared(folder)
    (*_, last) = alone.reports()
    for findings, listed, mine in on_ranks(2, read, folder):
        assert findings == last.findings == {"unreadable": 4, "not judged": 2}
        assert listed == alone.task.file_issues.rows()
        assert mine < 4  # this rank has not met them all itself


def read(group, folder):
    """What the ranks say at the end of a run, and how many unreadable files this one met itself."""
    job, met = prepared(folder, group=group), set()
    add = job.task.file_issues.add
    job.task.file_issues.add = lambda paths, result: (
        met.update(paths[i] for i in result.unreadable),
        add(paths, result),
    )
    (*_, last) = job.reports()
    return last.findings, job.task.file_issues.rows(), len(met)


def test_a_list_is_bounded_and_names_what_cannot_be_read_first(tmp_path, monkeypatch):
    monkeypatch.setattr("mixtune.data.file_issues.MAX_LISTED", 4)
    notes = FileIssues()
    notes.merge([(f"{i}.jpg", kind, "") for i in range(3) for kind in ("CMYK", "greyscale", "unreadable")])
    assert [row[:2] for row in notes.rows()] == [(f"{i}.jpg", "unreadable") for i in range(3)] + [("0.jpg", "CMYK")]
    assert sum(notes.counts().values()) == 9
    FileIssues().save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_accuracy_is_that_of_the_images_that_can_be_read(folder):
    """The oracle: the same evaluation of a folder without the damaged files."""
    bad = ["val/c0/02.jpg", "val/c1/00.jpg", "val/c1/04.jpg"]  # the last one ends a batch of its own
    for name in bad:
        damage(folder / name)
    job = prepared(folder)
    job.network.eval()
    found = job.task.evaluate(job.network, (32, 40))
    assert job.task.issue_counts() == {"unreadable": 3, "not judged": 3}
    for name in bad:
        (folder / name).rename(folder / name.replace("/", "_"))
    data.load_dataset.cache_clear()
    splits.split_dataset.cache_clear()
    rest = prepared(folder)
    rest.network.eval()
    oracle = rest.task.evaluate(rest.network, (32, 40))
    assert [p.metrics["top1"] for p in found.points] == [p.metrics["top1"] for p in oracle.points]
    for a, b in zip(found.points, oracle.points, strict=True):
        assert a.metrics == pytest.approx(b.metrics, rel=1e-5)


def test_a_batch_of_nothing_but_damaged_files_is_left_out_too(folder, monkeypatch):
    for i in range(5):
        damage(folder / f"val/c1/{i:02}.jpg")
    job = prepared(folder)
    monkeypatch.setattr(job.task, "_whole", lambda source, S, batch=None, **k: whole(source, S, 2, **k))
    whole = type(job.task)._whole.__get__(job.task)
    job.network.eval()
    assert 0 <= job.task.evaluate(job.network, (32,)).at(32).metrics["top1"] <= 1
    assert job.task.issue_counts()["not judged"] == 5


def test_no_image_to_judge_is_one_sentence(folder):
    job = prepared(folder)
    for path in folder.glob("val/*/*"):
        damage(path)
    with pytest.raises(InputError, match="none of the 10 images to judge can be read; is the storage there"):
        job.task.evaluate(job.network, (32,))


def test_a_choice_of_statistics_compares_what_both_could_read(folder):
    from mixtune.evaluation.bn_recalibration import choose
    from mixtune.evaluation.predictions import Predictions

    def made(correct, read):
        correct, read = torch.tensor(correct), torch.tensor(read)
        return Predictions(correct.float(), correct, correct, correct.float(), read)

    running = made([False] * 8, [True] * 8)
    better = made([True] * 4 + [False] * 4, [True] * 8)
    assert choose({"running": running, "train": better}, slice(None)) == "train"
    unread = made([True] * 4 + [False] * 4, [False] * 4 + [True] * 4)  # right only where there was nothing to judge
    assert choose({"running": running, "train": unread}, slice(None)) == "running"
    assert choose({"running": running, "train": made([True] * 8, [False] * 8)}, slice(None)) == "running"
