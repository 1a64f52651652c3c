"""Read YAML files into frozen dataclasses, strictly; an error is one sentence that names file and key."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mixtune.errors import InputError, did_you_mean

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads 5e-4 as a number (YAML 1.1 wants 5.0e-4) and refuses a key given twice."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    pairs = [(loader.construct_object(k), v) for k, v in node.value]  # type: ignore[no-untyped-call]
    for i, (key, _) in enumerate(pairs):
        if any(key == earlier for earlier, _ in pairs[:i]):
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
    loader.flatten_mapping(node)
    return {loader.construct_object(k): loader.construct_object(v, deep=True) for k, v in node.value}  # type: ignore[no-untyped-call]


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raise InputError when it is missing, unreadable, no YAML or no mapping."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file{_neighbours(path)}") from None
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(f"{path}: cannot be read as a text file ({err})") from None
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: not valid YAML: {getattr(err, 'problem', None) or err}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected keys and values, found {type(data).__name__}")
    return data


def _neighbours(path: Path) -> str:
    names = [p.name for p in path.parent.glob("[!.]*.yaml")] if path.parent.is_dir() else []
    return f"; in {path.parent} there are: {', '.join(sorted(names))}" if names else ""


def override(data: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return a copy of ``data`` with ``key.sub=value`` assignments applied; values are read as YAML.

    Raise InputError for an assignment without a key, through a value, or to what is not YAML.
    """
    data = json.loads(json.dumps(data, default=str))
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {text}: expected key=value, for example --set budget.epochs=5")
        *parents, last = key.strip().split(".")
        section = data
        for name in parents:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise InputError(f"--set {text}: {name} is a value, not a section")
        try:
            section[last] = yaml.load(value, Loader=_Loader)  # noqa: S506
        except yaml.YAMLError:
            raise InputError(f"--set {text}: {value!r} is not valid YAML") from None
    return data


def deep_merge(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``data`` with ``changes``, key by key: a section keeps the keys that its changes do not name."""
    result = dict(data)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = deep_merge(old, value) if both else value  # type: ignore[arg-type]
    return result


def parse(data: Mapping[str, Any], kind: type[T], source: str | Path) -> T:
    """Return ``data`` as the dataclass ``kind``, strictly typed. Raise InputError naming ``source`` and the key."""
    from pydantic import ValidationError

    try:
        # JSON mode is the strict mode that still reads a list as a tuple and 1 as 1.0.
        parsed: T = _adapter(kind).validate_json(json.dumps(data, default=str), strict=True)  # type: ignore[arg-type]
    except ValidationError as err:
        raise InputError(f"{source}: {_sentence(err.errors(), kind, data)}") from None
    return parsed


def load_config(path: str | Path, kind: type[T], assignments: Sequence[str] = ()) -> T:
    """Read a YAML file, apply ``key=value`` assignments and parse it as the dataclass ``kind``."""
    return parse(override(read_yaml(path), assignments), kind, path)


def to_plain(value: Any) -> Any:
    """Convert dataclasses and tuples to the dicts and lists of YAML and JSON, without fields that are None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: to_plain(v) for name, v in items if v is not None}
    if isinstance(value, Mapping):
        return {k: to_plain(v) for k, v in value.items()}
    return [to_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def to_yaml(value: Any) -> str:
    """Return readable YAML in the order given; floats keep every bit."""
    return yaml.safe_dump(to_plain(value), sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)


@cache
def _adapter(kind: type[Any]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _sentence(errors: Sequence[Any], kind: type[Any], data: Any) -> str:
    """Return the first error as 'key: what is wrong; what would be right'."""
    # A misspelt key is also a missing one: the misspelling says more.
    error = next((e for e in errors if e["type"] == "unexpected_keyword_argument"), errors[0])
    key = ".".join(str(part) for part in error["loc"] if not str(part).startswith(("function-", "tagged-")))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    match error["type"]:
        case "unexpected_keyword_argument":
            known = _fields_at(kind, error["loc"][:-1], data)
            return f"unknown key {key}; {did_you_mean(str(error['loc'][-1]), known)}{more}"
        case "missing" | "missing_argument":
            return f"{key} is missing{more}"
        case "value_error":
            return f"{key + ': ' if key else ''}{str(error['msg']).removeprefix('Value error, ')}{more}"
        case _:
            reason = str(error["msg"]).replace("Input should be", "must be")
            return f"{key} {reason[0].lower() + reason[1:]}, not {error['input']!r}{more}"


def _fields_at(kind: Any, loc: Sequence[Any], data: Any) -> list[str]:
    """Return the field names of the dataclass that the error's path leads to.

    A dataclass whose ``of_section`` names another one for what a section holds is read as that one.
    """
    import types
    import typing

    for part in loc:
        data = data[part] if isinstance(data, (Mapping, list)) else None
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        kind = hints.get(str(part), kind) if hints else kind
        while not dataclasses.is_dataclass(kind):
            inside = [a for a in typing.get_args(kind) if a not in (types.NoneType, Ellipsis)]
            nested = [a for a in inside if dataclasses.is_dataclass(a) or typing.get_args(a)]
            if not nested:
                break
            kind = nested[0]
        kind = kind.of_section(data) if hasattr(kind, "of_section") else kind
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
