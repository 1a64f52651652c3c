import re
from dataclasses import dataclass, field

import pytest

from mixtune.config import load_config, override, parse, read_yaml, to_plain, to_yaml
from mixtune.errors import InputError


@dataclass(frozen=True)
class Inner:
    __pydantic_config__ = {"extra": "forbid"}

    rate: float
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Outer:
    __pydantic_config__ = {"extra": "forbid"}

    inner: Inner
    name: str = "x"
    many: tuple[Inner, ...] = field(default=())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"inner": {"rate": 1}, "nmae": "y"}, r"^f\.yaml: .*\bnmae\b.*'name'"),
        ({"inner": {"rate": 1, "size": [1]}}, r"^f\.yaml: .*\binner\.size\b.*'sizes'"),
        ({"inner": {"rate": "fast"}}, r"^f\.yaml: inner\.rate .*'fast'"),
        ({"inner": {"rate": True}}, r"^f\.yaml: inner\.rate .*True"),
        ({"inner": {"rate": 1, "sizes": [1.5]}}, r"^f\.yaml: inner\.sizes\.0 .*1\.5"),
        ({"name": "x"}, r"^f\.yaml: inner\b"),
        ({"inner": {"rate": 1}, "many": [{"rate": 1}, {"rat": 1}]}, r"^f\.yaml: .*\bmany\.1\.rat\b.*'rate'"),
    ],
)
def test_mistakes_are_named_with_file_and_key(data, message):
    with pytest.raises(InputError, match=message):
        parse(data, Outer, "f.yaml")


def test_round_trip_through_yaml(tmp_path):
    value = Outer(Inner(1 / 3, (3,)), "n", (Inner(5e-4),))
    path = tmp_path / "f.yaml"
    path.write_text(to_yaml(value))
    assert load_config(path, Outer) == value
    assert to_plain(value)["many"] == [{"rate": 5e-4, "sizes": [1, 2]}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "line 1.*'a'"),
        ("a: [1\n", "line 2.*YAML"),
        ("- 1\n", "list"),
        ("", "NoneType"),
        ("a: !!python/object/apply:os.system [ls]\n", "line 1.*YAML"),
    ],
)
def test_bad_yaml_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}.*{message}"):
        read_yaml(path)


def test_missing_file_names_its_neighbours(tmp_path):
    for name in ("digits.yaml", ".pre-commit-config.yaml"):  # tools' own files are hidden
        (tmp_path / name).write_text("a: 1")
    with pytest.raises(InputError, match=r"digit\.yaml: .*: digits\.yaml$"):
        read_yaml(tmp_path / "digit.yaml")


def test_numbers_with_an_exponent_are_numbers(tmp_path):
    (tmp_path / "f.yaml").write_text("a: 5e-4\nb: 1E3\nc: e5\n")
    assert read_yaml(tmp_path / "f.yaml") == {"a": 5e-4, "b": 1000.0, "c": "e5"}


def test_override_sets_nested_keys_and_leaves_the_original():
    data = {"a": {"b": 1}}
    assert override(data, ["a.b=2", "a.c=[1, x]", "d.e=1e-3"]) == {"a": {"b": 2, "c": [1, "x"]}, "d": {"e": 1e-3}}
    assert data == {"a": {"b": 1}}


@pytest.mark.parametrize("text", ["a", "=1", "a.b.c=1", "a=[1"])
def test_bad_overrides_are_refused(text):
    with pytest.raises(InputError, match=f"--set {re.escape(text)}"):
        override({"a": {"b": 1}}, [text])
