"""What wrappers put before the names of the model that they wrap (averages, data parallelism, torch.compile)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from net2net.checkpoints.stored import Stored

PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.")


def common_prefix(names: Iterable[str], aliases: Mapping[str, str], known: Collection[str]) -> str | None:
    """The one before all of these names, which are of the model then; None if there is none."""
    names = list(names)

    def fits(prefix: str, name: str) -> bool:
        own = name.removeprefix(prefix)
        return name.startswith(prefix) and aliases.get(own, own) in known

    return next((prefix for prefix in PREFIXES if all(fits(prefix, name) for name in names)), None)


def prefixes_of(
    node: Mapping[Any, Any], aliases: Mapping[str, str], names: Mapping[str, Any], saved: Collection[str]
) -> list[str]:
    """What stands before the names of a model in a state dict that has it, perhaps several times: a wrapper's prefix if
    there are any of its names, and whatever is before all of them, in the order of the dict."""
    keys = [key for key, value in node.items() if isinstance(key, str) and isinstance(value, Stored)]
    found = {
        prefix: sum(key.startswith(prefix) and aliases.get(key[len(prefix) :], key[len(prefix) :]) in names
                    for key in keys)
        for prefix in PREFIXES
    }  # fmt: skip
    best = max(PREFIXES, key=lambda prefix: found[prefix])
    # Other wrappers, nested ones, and attributes that hold the model.
    one = min(saved, default="")
    others = dict.fromkeys(key.removesuffix(one) for key in keys if one and key.endswith(one))
    whole = [
        prefix for prefix in others
        if (not prefix or prefix.endswith(".")) and all(prefix + name in node for name in saved)
    ]  # fmt: skip
    return list(dict.fromkeys([best, *whole])) if found[best] else whole


def parted(node: Mapping[Any, Any], prefixes: Iterable[str]) -> tuple[dict[str, dict[str, Stored]], dict[Any, Any]]:
    """The tensors behind each of these prefixes (of those that fit, the longest counts), by the names behind it; and
    the rest."""
    of: dict[str, dict[str, Stored]] = {prefix: {} for prefix in prefixes}
    rest = {}
    for key, value in node.items():
        fitting = [p for p in of if isinstance(key, str) and key.startswith(p)]
        if fitting and isinstance(value, Stored):
            prefix = max(fitting, key=len)
            of[prefix][key.removeprefix(prefix)] = value
        else:
            rest[key] = value
    return of, rest
