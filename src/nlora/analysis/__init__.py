"""What adapters do to each other, from their factors alone: no model, no data, tensors in and numbers out.

    from nlora.analysis.interference import compare_states
    from nlora.models.lora_factors import load_factors

    comparison = compare_states({"a": load_factors("runs/a/..."), "b": load_factors("runs/b/...")})
    comparison.average_collision_rate, comparison.threshold
    comparison.to_json()["pairs"]["a|b"]["sign_conflict"]

Most of it never forms an update: norms, cosines, angles and spectra come from products of the factors
(`spectrum`, `subspace`). What is said of single entries needs them: `entrywise` walks the updates in blocks.
"""
