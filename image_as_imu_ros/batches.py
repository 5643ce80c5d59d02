"""Which items are computed together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar('Item')


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Take items in turn, so many at once; the last batch may be smaller."""
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def by_kind(kinds: Sequence[Hashable | None]) -> list[list[int]]:
    """Indices of the items of each kind, which can be computed at once; None is left out."""
    groups: dict[Hashable, list[int]] = {}
    for index, kind in enumerate(kinds):
        if kind is not None:
            groups.setdefault(kind, []).append(index)
    return list(groups.values())
