"""How a returning IDC differs from the others, on the screen. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# By IDC: (hash, rows) of each partition's replicated state.
Hashes = Mapping[str, Mapping[int, tuple[str, int]]]


def lines(divergence: Mapping[str, Any]) -> list[str]:
    """Of the document that ``services.control.divergence`` makes: a line for each origin that
    says something, one for all that are the same."""
    idc, others, silent = divergence["idc"], divergence["others"], divergence["silent"]
    said = []
    if divergence["origin"]:
        against = ", ".join(others) or "none that answer"
        said.append(f"divergence of {idc} ({divergence['origin']}) from {against}, in records:")
    else:
        said.append(f"divergence of {idc}: unknown, because {idc} does not answer")
    same = []
    for origin, row in divergence["origins"].items():
        parts = _parts(row)
        if parts:
            said.append(f"  {origin}: {'; '.join(parts)}")
        else:
            same.append(origin)
    said += [f"  no difference for {', '.join(same)}"] if same and others else []
    if silent:
        verb, was = ("does", "is") if len(silent) == 1 else ("do", "are")
        said.append(f"  {', '.join(silent)} {verb} not answer and {was} left out")
    return said


def _parts(row: Mapping[str, Any]) -> list[str]:
    counts = (("only_here", "only here"), ("missing", "missing here"), ("unfolded", "not folded"))
    parts = [] if row["sealed_at"] is None else [f"sealed at {row['sealed_at']}"]
    parts += [f"{row[key]} {words}" for key, words in counts if row[key]]
    for key, words in (("to_publish", "to republish"), ("published", "republished")):
        if row[key]:
            by_idc = ", ".join(f"{name} {count}" for name, count in row[key].items())
            parts.append(f"{words}: {by_idc}")
    return parts


def hashes_document(hashes: Hashes) -> dict[str, Any]:
    """For -o json."""
    return {
        "equal": {str(number): _equal(hashes, number) for number in _partitions(hashes)},
        "idcs": {
            name: {str(number): {"hash": digest, "rows": rows} for number, (digest, rows) in
                   partitions.items()}
            for name, partitions in hashes.items()
        },
    }  # fmt: skip


def hash_lines(hashes: Hashes) -> list[str]:
    """Which partitions' replicated state is equal in all IDCs that were asked."""
    if len(hashes) < 2:
        return ["state hashes: fewer than two IDCs answered, so there is nothing to compare"]
    numbers = _partitions(hashes)
    differing = [number for number in numbers if not _equal(hashes, number)]
    if not differing:
        return [f"state hashes: equal in {len(numbers)} partitions of {', '.join(hashes)}"]
    said = [f"state hashes: equal in {len(numbers) - len(differing)} of {len(numbers)} partitions"]
    for number in differing:
        found = ((name, partitions.get(number)) for name, partitions in hashes.items())
        cells = [f"{n} {one[0][:8]} ({one[1]} rows)" if one else f"{n} none" for n, one in found]
        said.append(f"  partition {number}: {', '.join(cells)}")
    return said


def _partitions(hashes: Hashes) -> list[int]:
    return sorted({number for partitions in hashes.values() for number in partitions})


def _equal(hashes: Hashes, number: int) -> bool:
    """One alone is equal to nobody."""
    found = {partitions.get(number) for partitions in hashes.values()}
    return len(hashes) > 1 and len(found) == 1
