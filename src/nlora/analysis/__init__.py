"""How much the updates of adapters interfere, from their factors alone: no model, no data.

Norms, cosines, angles and spectra come from products of the factors (`spectrum`, `pair_measures`). Only the measures of
single entries form the updates, tile by tile (`entrywise`).
"""
