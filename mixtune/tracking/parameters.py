"""Writes a study's settings and a trial's point as MLflow's text, and reads them back."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.search.candidates import Search
from mixtune.search.domains import Domains, Range, Value
from mixtune.tracking.views import padded

T = TypeVar("T")
POINT = "mixtune.point"  # tag: a trial's point with every bit, as JSON; its parameters are rounded for reading
_LONGEST = 6000  # characters of a parameter in MLflow


def settings(section: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Return a section of a space (see ``config.to_plain``) as parameters ``section.key``; ``""``: the top level."""
    prefix = f"{section}." if section else ""
    return {f"{prefix}{k}": str(v)[:_LONGEST] for k, v in values.items()}


def section(params: Mapping[str, str], name: str, kind: type[T], source: str) -> T:
    """Return a section as the dataclass that it was, to the bit: the inverse of ``settings``.

    Raises InputError naming ``source`` and the key where the parameters do not hold it.
    """
    given = {k.removeprefix(f"{name}."): _value(v) for k, v in params.items() if k.startswith(f"{name}.")}
    # None is what a field that is left out has.
    return parse({k: v for k, v in given.items() if v is not None}, kind, f"{source}: {name}")


def point(params: Mapping[str, Value], digits: int) -> dict[str, str]:
    """Return a trial's point as parameters for reading: numbers to four digits, sizes in names with ``digits``."""
    return {padded(k, digits): _shown(v) for k, v in params.items()}


def exact(params: Mapping[str, Value]) -> str:
    """Return a trial's point with every bit: the text of the tag ``POINT``."""
    return json.dumps(dict(params))


def read_point(tags: Mapping[str, str], params: Mapping[str, str], search: Search, source: str) -> dict[str, Value]:
    """Return a trial's point: from its tag, or from its rounded parameters where a study is older than the tag.

    Raises InputError naming ``source`` where it lacks one of the search's parameters.
    """
    if POINT in tags:
        values: dict[str, Value] = json.loads(tags[POINT])
    else:
        known = {f"w_{int(k[2:])}" if k.startswith("w_") else k: v for k, v in params.items()}  # w_08 is w_8
        values = {k: _read(known[k], domain) for k, domain in search.domains.items() if k in known}
    if missing := sorted(set(search.domains) - set(values)):
        raise InputError(f"{source}: has no parameter {missing[0]}, which its study searched; mixtune did not write it")
    return values


def _shown(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _read(text: str, domain: Domains) -> Value:
    """Return the value of a domain that is shown as ``text``."""
    if isinstance(domain, Range):
        return min(max(float(text), domain.low), domain.high)  # rounding may have left the range
    return next((v for v in domain if _shown(v) == text), text)


def _value(text: str) -> Any:
    """Return what ``str`` made this text of: a plain value, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
