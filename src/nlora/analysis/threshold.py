"""The default threshold: which entries count as zero.

No entry of B·A is exactly zero, so collisions depend on a threshold, and the paper does not state its own. The default
is DEFAULT_FACTOR times the root mean square (RMS) over all entries of all compared updates:

- Scale-free: multiplying all updates by c multiplies the threshold by c, and no rate changes.
- Interpretable: an entry that counts as zero is at most 0.1·RMS, so together these hold at most
  DEFAULT_FACTOR² = 1 % of the squared norm.
- Pooled: an update much smaller than the others collides little with them, and harms them little. A separate threshold
  for each adapter would hide that.

A scale-free threshold cannot show that one set of updates is smaller than another. For that, compare both sets at one
absolute threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from nlora.models.lora_factors import AdapterState, LoraFactors

DEFAULT_FACTOR = 0.1
DEFAULT_RULE = f"{DEFAULT_FACTOR:g} x the root mean square of all entries of the compared updates"
GIVEN_RULE = "as given, absolute"


def squared_norm(f: LoraFactors) -> float:
    """‖ΔW‖²_F = scaling²·Σ (B·ᵀB ∘ A·Aᵀ), from r×r products in float64."""
    A, B = f.A.detach().cpu().double(), f.B.detach().cpu().double()
    return max(0.0, f.scaling**2 * float(((B.mT @ B) * (A @ A.mT)).sum()))


def root_mean_square(state: AdapterState) -> float:
    """The RMS over all entries of all modules."""
    entries = sum(f.entries for f in state.values())
    return math.sqrt(math.fsum(map(squared_norm, state.values())) / entries)


def pooled(rms: Mapping[str, float], entries: Mapping[str, int]) -> float:
    """The RMS over the entries of all adapters, from the RMS and the number of entries of each."""
    return math.sqrt(math.fsum(rms[n] ** 2 * entries[n] for n in rms) / sum(entries.values()))
