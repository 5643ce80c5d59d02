"""Confidence intervals of figures over time series, whose neighbouring errors are alike."""

from __future__ import annotations

import numpy as np

BLOCK_S = 0.5
"""Length of the stretches that are drawn whole: errors further apart count as independent."""
MIN_BLOCKS = 6
"""With fewer stretches there is no interval."""
DRAWS = 2000
SEED = 0


class BlockBootstrap:
    """
    Draws stretches of time with replacement, the same ones for every figure.

    Source: Kuensch (1989), doi:10.1214/aos/1176347265; stretches do not overlap here.

    :param stamp_ns: (N,), times of the frames, N > 0; cameras at the same time count together
    """

    def __init__(self, stamp_ns: np.ndarray) -> None:
        slots = (stamp_ns - stamp_ns.min()) // round(BLOCK_S * 1e9)
        _, self._block = np.unique(slots, return_inverse=True)
        self.count = int(self._block.max(initial=-1)) + 1
        self._times_drawn = np.random.default_rng(SEED).multinomial(
            self.count, np.full(self.count, 1.0 / self.count), size=DRAWS) \
            if self.count >= MIN_BLOCKS else None

    def ratio_interval(self, numerator: np.ndarray,
                       denominator: np.ndarray | None = None) -> np.ndarray | None:
        """
        95 % interval of sum(numerator) / sum(denominator), as of a mean or a slope.

        :param numerator: (N, K)
        :param denominator: (N, K); None counts the frames
        :returns: (K, 2), NaN where the denominator may be zero; None with too few stretches
        """
        if self._times_drawn is None:
            return None
        if denominator is None:
            denominator = np.ones_like(numerator, dtype=float)
        above, below = (self._times_drawn @ self._sums(values)
                        for values in (numerator, denominator))
        ratios = np.divide(above, below, where=below != 0.0, out=np.full(above.shape, np.nan))
        return np.percentile(ratios, (2.5, 97.5), axis=0).T

    def _sums(self, values: np.ndarray) -> np.ndarray:
        """Sum of each stretch, (blocks, K)."""
        sums = np.zeros((self.count, values.shape[1]))
        np.add.at(sums, self._block, values)
        return sums
