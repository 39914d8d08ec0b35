"""Whether two models differ by more than chance on the examples that both answered.

The test is paired: of the examples whose score changed, how many got worse? Without a real change, getting worse and
getting better are equally likely. For right and wrong answers this is the exact McNemar test (McNemar 1947, with
binomial tails). For scores in between (ROUGE-L) it is the sign test, of which McNemar's is a special case. Several
tasks are several tests, so p-values are corrected by Holm (1979).
"""

from __future__ import annotations

from collections.abc import Sequence


def sign_test(worse: int, better: int) -> float:
    """The two-sided exact p-value that two counts come from a fair coin; 1 if both are 0.

    >>> sign_test(9, 1)
    0.021484375
    """
    n = worse + better
    ways = tail = 1  # of drawing no head; then of k heads, from those of k - 1
    for k in range(1, min(worse, better) + 1):
        ways = ways * (n - k + 1) // k
        tail += ways
    return min(1.0, 2 * tail / (1 << n))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number by Holm's step-down method, in the given order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected
