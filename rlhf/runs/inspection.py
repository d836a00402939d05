"""Contracts as text: one adapter's, and what differs between two."""

import dataclasses
from typing import Any

from rlhf.runs.contract import Contract, differences

COMPARED = tuple(field.name for field in dataclasses.fields(Contract) if field.compare and field.name != "trained_on")


def contract_text(contract: Contract, conversations: int | None) -> str:
    """Returns a contract as lines `name  value`, for the terminal.

    Args:
        conversations: number of the conversations in trained_on.safetensors; None without that file.
    """
    lines = [(name, value) for name, value in _flat(contract) if value not in (None, [], {}, "")]
    seen = "unknown" if conversations is None else f"{conversations:,} with those of its parents"
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in [*lines, ("conversations", seen)])


def differences_text(a: Contract, b: Contract) -> str:
    """Returns one line for each value in which two contracts differ: `name  a | b`."""
    found = differences(a, b, COMPARED)
    sources = [[_source(source) for source in contract.trained_on] for contract in (a, b)]
    found += [("trained_on", *map("; ".join, sources))] if sources[0] != sources[1] else []
    if not found:
        return "nothing differs"
    width = max(len(name) for name, *_ in found)
    return "\n".join(f"{name:<{width}}  {_shown(name, theirs)} | {_shown(name, ours)}" for name, theirs, ours in found)


def _flat(contract: Contract) -> list[tuple[str, Any]]:
    lines = [("stage", contract.stage)]
    for name in COMPARED[1:]:
        value = getattr(contract, name)
        rows = value.items() if isinstance(value, dict) else [("", value)]
        lines += [(f"{name}.{key}".rstrip("."), item) for key, item in rows]
    return lines + [("trained_on", _source(source)) for source in contract.trained_on]


def _source(source: dict[str, Any]) -> str:
    span = " to ".join(map(str, source.get("range") or ()))
    return (
        f"{source.get('name')} ({source.get('split')}): {source.get('rows')} rows of {source.get('conversations')} "
        f"conversations, hashes {span}, digest {source.get('digest')}"
    )


def _shown(name: str, value: Any) -> str:
    missing = "none" if name.startswith("parents.") else "the default"
    return missing if value is None else str(value)
