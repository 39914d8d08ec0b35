"""Pure tensor functions with gradients in closed form; nothing here knows a model.

from nlora.kernels.l1 import update_l1

penalty = update_l1(A, B, scaling)           # Σ|scaling·B·A|, without ever storing B·A
"""
