"""Unbiased pass@k: the probability that at least one of k samples is correct.

Paper: https://arxiv.org/abs/2107.03374.
"""

import numpy as np

from igrpo_kit.core.toy import Numbers


def _pass_at_k_one_n(n: int, correct: np.ndarray, k: int) -> np.ndarray:
    # C(n-c, k) / C(n, k) = prod_{j<c} (1 - k / (n - j)), as a sum of log1p: the binomials would overflow.
    # For c >= n - k + 1, any k samples include a correct one.
    certain = n - k + 1
    log_miss = np.concatenate([[0.0], np.cumsum(np.log1p(-k / (n - np.arange(certain - 1))))])
    return np.where(correct >= certain, 1.0, -np.expm1(log_miss[np.minimum(correct, certain - 1)]))


def pass_at_k(num_samples: Numbers, num_correct: Numbers, k: int) -> np.ndarray:
    """1 - C(n - c, k) / C(n, k): unbiased pass@k of each problem (Eq. 1 of https://arxiv.org/abs/2107.03374).

    Whether one of the first k samples is correct has the same mean and a much higher variance (the points in
    Fig. S.1 of https://arxiv.org/abs/2602.09000 are single draws of this kind). The estimate 1 - (1 - c/n)^k
    is biased low.

    Args:
        num_samples: n of each problem; broadcasts with `num_correct`.
        num_correct: c of each problem.
        k: a single number, at most n.

    Raises:
        ValueError: k < 1, k > n, c < 0, c > n, or a count is not an integer (the message names the argument).
    """
    n, c = np.broadcast_arrays(np.asarray(num_samples), np.asarray(num_correct))
    for name, array in (("num_samples", n), ("num_correct", c), ("k", np.asarray(k))):
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{name}: whole numbers, got {array.dtype}")
    if k < 1 or np.any(n < k):
        raise ValueError(f"k: 1 <= k <= num_samples is needed, got k = {k}, num_samples >= {n.min()}")
    if np.any((c < 0) | (c > n)):
        raise ValueError(f"num_correct: between 0 and num_samples, got {c[(c < 0) | (c > n)][:5]}")
    out = np.empty(n.shape)
    for size in np.unique(n):
        here = n == size
        out[here] = _pass_at_k_one_n(int(size), c[here], k)
    return out
