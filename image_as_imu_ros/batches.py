"""Which items are computed together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

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


def by_shape(arrays: Sequence[np.ndarray | None]) -> list[list[int]]:
    """Indices of the arrays of each shape, which can be computed at once; None is left out."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, array in enumerate(arrays):
        if array is not None:
            groups.setdefault(array.shape, []).append(index)
    return list(groups.values())
