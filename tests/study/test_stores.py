import pytest

from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.search.paths import StudyPaths
from mixtune.search.space import Space
from mixtune.study.stores import open_stores, study_exists


@pytest.mark.parametrize("folder", [".", "leaders"])
def test_records_that_an_earlier_version_kept_from_its_database_are_named(tmp_path, tiny, folder):
    path = tmp_path / folder / "unsent-study.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"do": "finish", "trial": 3}\n')
    space, places = parse(tiny, Space, "f"), StudyPaths(tmp_path)
    with pytest.raises(InputError, match=r"unsent-study\.jsonl"), open_stores(space, places, 4, False):
        pass
    assert path.exists()
    assert not study_exists(space, places)


def test_resuming_begins_no_study(tmp_path, tiny):
    space, places = parse(tiny, Space, "f"), StudyPaths(tmp_path / "study")
    with pytest.raises(InputError, match=r"--resume: .*study\.journal"), open_stores(space, places, 4, True):
        pass
    assert list(tmp_path.iterdir()) == []
