"""The growth log: by what a checkpoint has grown, in its own metadata."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from net2net.plan import GrowthPlan

#: The entry of a checkpoint's metadata.
KEY = "net2net.growth"

VERSION = 1


def entry(plan: GrowthPlan, source: str) -> dict[str, Any]:
    """What a growth adds to the log: the plan, what the checkpoint was called that it was applied to, and by which
    version of this package."""
    try:
        package = importlib.metadata.version("n2n-kernels")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        package = None
    return {"version": VERSION, "source": source, "n2n-kernels": package, "plan": plan.document()}


def written(log: list[dict[str, Any]]) -> str:
    return json.dumps(log, separators=(",", ":"))


def read(metadata: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    """The log's entries, in the order of the growths; none if there is no log. ValueError if it is damaged."""
    text = metadata.get(KEY)
    if text is None:
        return []
    try:
        log = json.loads(text)
        for each in log:
            if each["version"] != VERSION:
                raise ValueError(f"an entry is of version {each['version']}, this program reads {VERSION}")
            each["plan"]["format"]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{what} has a damaged growth log: {type(error).__name__}: {error}") from error
    return list(log)


def plans(log: list[dict[str, Any]], what: str) -> list[GrowthPlan]:
    """The plans of a log. ValueError if one is of another version, or damaged."""
    return [GrowthPlan.from_document(each["plan"], f"growth {n} of {what}") for n, each in enumerate(log, 1)]


def growth_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The growths of the checkpoint at `path`, the first one first: dicts with `source`, the name of the checkpoint
    that was grown, `n2n-kernels`, the version that did it, and `plan`, for `GrowthPlan.from_document`.

    Raises:
        ValueError: there is no checkpoint, or its log is damaged.
    """
    from net2net.checkpoints import formats

    return formats.read(Path(path)).log
