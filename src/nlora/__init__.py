"""nlora teaches one language model many tasks, one after another, and keeps it from forgetting.

    nlora demo                       # N-LoRA beside plain incremental LoRA on a small real model
    nlora run my.yaml seed=1         # your model, your tasks

The public names are those listed in `__all__`; everything heavy (torch, transformers) is imported
only when it is used, so that `nlora --help` answers at once.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
