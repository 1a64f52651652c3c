"""Saves how MLflow's pages show a study: a view of its runs, the best first, and the address that opens it.

Without them MLflow opens on its pages for chat models and hides trials, score and regime. A view is a tag of the
experiment, as the pages' own "share" button writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from mixtune.search.space import Space


def view(space: Space) -> tuple[str, str]:
    """Return name and value of the experiment tag that holds the study's view."""
    state = {
        "searchFilter": f"tags.`mixtune.study` = '{space.study}'",
        "orderByKey": "metrics.`score`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": _columns(space),
    }
    return f"mlflow.sharedViewState.{_key(space.study)}", json.dumps(state)


def _columns(space: Space) -> Sequence[str]:
    digits = width([*space.search.sizes, *space.evaluate.sizes])
    primary = space.task.metrics.primary.name
    sizes = [f"metrics.`{at_size(primary, S, digits)}`" for S in sorted(space.evaluate.sizes)]
    recipe = (f"recipe.{name}" for name in space.search.recipe)
    params = [f"params.`{name}`" for name in ("regime", "growth", "split", *recipe)]
    return ["metrics.`score`", *sizes, *params, "tags.`mixtune.state`", "attributes.`Duration`"]


def width(sizes: Iterable[int]) -> int:
    """Return the digits of sizes in names of metrics and parameters, which MLflow sorts as text: w_08 before w_16."""
    return len(str(max(sizes)))


def at_size(name: str, S: int, digits: int) -> str:
    """Return the name of what holds a metric at one size: a column of its own in a table of runs."""
    return f"{name}/S{S:0{digits}d}"


def padded(name: str, digits: int) -> str:
    """Return a parameter's name in MLflow: w_8 as w_08 where sizes have two digits."""
    return f"w_{int(name[2:]):0{digits}d}" if name.startswith("w_") else name


def address(server: str, experiment: str, study: str) -> str:
    """Return where the study's view opens on a server (http://host:port)."""
    page = f"{server.rstrip('/')}/#/experiments/{experiment}/runs"
    return f"{page}?workflowType=machine_learning&viewStateShareKey={_key(study)}"


def _key(study: str) -> str:
    return f"mixtune-{study}"
