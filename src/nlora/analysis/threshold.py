"""Which entries count as zero: the default threshold.

    rms = {name: root_mean_square(state) for name, state in states.items()}
    t = DEFAULT_FACTOR * pooled(rms, entries)     # entries: how many each adapter has

No entry of B·A is exactly zero, so a threshold decides what a collision is, and the paper does not state its own. The
default is DEFAULT_FACTOR times the root mean square (RMS) over all entries of all compared updates pooled:

- Scale-free: multiplying all updates by c multiplies the threshold by c, and no rate changes.
- With a meaning: the entries that it takes for zero hold together at most DEFAULT_FACTOR² = 1 % of the pooled squared
  norm, since each of them is at most 0.1·RMS.
- One number for all: an update that is much smaller than the others collides little with them, and harms them little.
  A threshold of its own for each adapter would hide that.

What no scale-free threshold can show is that a whole set of updates is smaller than another set. For that, compare
both at one absolute threshold.
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
    """Of all entries of all modules."""
    entries = sum(f.entries for f in state.values())
    return math.sqrt(math.fsum(map(squared_norm, state.values())) / entries)


def pooled(rms: Mapping[str, float], entries: Mapping[str, int]) -> float:
    """The RMS over the entries of all adapters, from the RMS and the number of entries of each."""
    return math.sqrt(math.fsum(rms[n] ** 2 * entries[n] for n in rms) / sum(entries.values()))
