"""What adapters do to each other, from their factors alone: no model, no data, tensors in and numbers out.

    from nlora.analysis import compare_states
    from nlora.models.lora_factors import load_factors

    comparison = compare_states({"a": load_factors("runs/a/..."), "b": load_factors("runs/b/...")})
    comparison.average_collision_rate, comparison.threshold
    comparison.to_json()["pairs"]["a|b"]["sign_conflict"]

Most of it never forms an update: norms, cosines, angles and spectra come from products of the factors
(`spectrum`, `subspace`). What is said of single entries needs them: `entrywise` walks the updates in blocks. The names
are looked up when they are used, so that importing this package does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nlora.analysis.interference import compare_states
    from nlora.analysis.result import Comparison

__all__ = ["Comparison", "compare_states"]


def __getattr__(name: str) -> Any:
    if name == "compare_states":
        from nlora.analysis.interference import compare_states

        return compare_states
    if name == "Comparison":
        from nlora.analysis.result import Comparison

        return Comparison
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
