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


def by_shape(images: Sequence[np.ndarray]) -> list[list[int]]:
    """Indices of the images of each shape, which a network can see at once."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(image.shape, []).append(index)
    return list(groups.values())
