import pytest

from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.search.space import Space


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"minutes": 0}, "limits: minutes must be a number of minutes above 0, not 0"),
        ({"silent_minutes": -1}, "limits: silent_minutes must be a number of minutes above 0"),
        ({"retries": -1}, "limits: retries must be at least 0, not -1"),
        ({"minuts": 1}, "unknown key limits.minuts; did you mean 'minutes'?"),
    ],
)
def test_bad_limits_are_one_sentence(tiny, limits, message):
    with pytest.raises(InputError, match=message):
        parse(tiny | {"limits": limits}, Space, "f")


def test_limits_are_no_part_of_what_a_study_is(tiny):
    plain = parse(tiny, Space, "f").digest()
    assert parse(tiny | {"limits": {"minutes": 5, "retries": 0}}, Space, "f").digest() == plain
