"""What learning a task did to the earlier ones: how much updates interfere, and which answers changed (`gate`).

Interference is measured from the factors of the adapters alone: no model, no data. Norms, cosines, angles and spectra
come from products of the factors (`spectrum`, `pair_measures`). Only the measures of single entries form the updates,
tile by tile (`entrywise`).
"""
