"""The noise around a curve: AR(1), with one coefficient phi for all series of an arm.

    y_k = curve_k + e_k;  e_k = phi e_(k-1) + u_k,  u_k independent,  sd(u) = sd(e) sqrt(1 - phi^2)
    phi = clip(1 + 2 r, 0, 0.95),  r = correlation of neighbouring first differences
Differences of AR(1) noise have r = -(1 - phi)/2 whatever the level and the slope of the curve, though not its bends:
hence `shapes.arm_phi`. A coefficient of each series by itself, read from residuals, takes a real step for persistence
and hides it. Differences are clipped at 2.5 robust deviations from their median, so that a jump is one difference of
many; then their mean is taken out, which knows the slope far better than the median does (differences of noise nearly
cancel in a sum), so that no correction for its error is needed.

Axes: S series, K chunks, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAD_TO_SD = 1.4826
"""Of a Gaussian."""
CLIP = 2.5
LARGEST_PHI = 0.95


def pooled_phi(values: Sequence[NDArray[np.float64]]) -> float:
    """The coefficient of all series together; 0 where none has two differences that vary."""
    before, after = [], []
    for value_K in values:
        step = np.diff(value_K)
        spread = mad_deviation(step)
        if spread > 0:
            scaled = np.clip((step - np.median(step)) / spread, -CLIP, CLIP)
            scaled -= scaled.mean()
            before.append(scaled[:-1])
            after.append(scaled[1:])
    if sum(map(len, before)) < 2:
        return 0.0
    x, y = np.concatenate(before), np.concatenate(after)
    norm = np.sqrt((x**2).sum() * (y**2).sum())
    return float(np.clip(1 + 2 * (x * y).sum() / norm, 0.0, LARGEST_PHI)) if norm > 0 else 0.0


def mad_deviation(value_K: NDArray[np.float64]) -> NDArray[np.float64]:
    """Robust standard deviation along the last axis; 0 of nothing."""
    if not value_K.shape[-1]:
        return np.zeros(value_K.shape[:-1])
    return MAD_TO_SD * np.median(np.abs(value_K - np.median(value_K, axis=-1, keepdims=True)), axis=-1)


def noise_deviation(value_K: NDArray[np.float64], phi: float) -> float:
    """Standard deviation of the noise e around any curve that changes slowly, from the differences of the series."""
    return float(mad_deviation(np.diff(value_K)) / np.sqrt(2 * (1 - phi)))


def whiten(value_K: NDArray[np.float64], phi: float) -> NDArray[np.float64]:
    """u from e along the last axis; the first chunk is scaled to the same deviation (Prais and Winsten 1954)."""
    first = np.sqrt(1 - phi**2) * value_K[..., :1]
    return np.concatenate([first, value_K[..., 1:] - phi * value_K[..., :-1]], axis=-1)


def colour(shock_K: NDArray[np.float64], phi: float) -> NDArray[np.float64]:
    """e from u: the inverse of `whiten`."""
    noise_K = np.array(shock_K, dtype=np.float64)
    noise_K[..., 0] /= np.sqrt(1 - phi**2)
    for k in range(1, noise_K.shape[-1]):
        noise_K[..., k] += phi * noise_K[..., k - 1]
    return noise_K


def ar1_noise(rng: np.random.Generator, shape: tuple[int, ...], phi: float) -> NDArray[np.float64]:
    """Stationary Gaussian noise of unit deviation along the last axis."""
    return colour(rng.normal(scale=np.sqrt(1 - phi**2), size=shape), phi)
