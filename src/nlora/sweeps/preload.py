"""The imports of a run, made once by the server that forks the runs of a sweep (`nlora.sweeps.processes`).

They take most of the time of a short run. Nothing here may initialize CUDA: a forked process could not use it any more.
"""

import gc
import importlib
import os

# torch then asks the driver for GPUs without initializing CUDA.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"

import torch

from nlora.runs.importing import importing
from nlora.runs.quiet import quiet

SAFE = ["transformers", "accelerate", "rouge_score.rouge_scorer", "nlora.config.load", "nlora.runs.folder"]
WITHOUT_GPU = ["nlora.api.learn", "nlora.runs.sequence", "nlora.runs.preflight", "nlora.report.page"]
"""These import PEFT, which imports bitsandbytes, which initializes CUDA."""

with quiet(), importing():
    for name in [*SAFE, *([] if torch.cuda.is_available() else WITHOUT_GPU)]:
        importlib.import_module(name)
gc.freeze()  # a forked run need not look for garbage among these objects, and its pages of them stay shared
