"""What an export came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nlora.runs.checkpoint import Checkpoint
from nlora.runs.export.options import ExportOptions

if TYPE_CHECKING:
    from nlora.runs.export.forms import RankLoss
    from nlora.runs.export.sparse import Sizes, ThresholdRow


@dataclass(slots=True)
class Export:
    """What was exported.

    size: bytes on the disk, without the model card and the record. examples: how many of each task were answered.
    run, scores: percent by task, of the run's own answers and of the export's, on these examples.
    different: how many answers differ from the run's, by task. notes: what to know, a line each.
    auto_class: the class of transformers that loads the model or its backbone.
    asked, active: a task whose texts the card asks, and the positions in `adapters` of those that answer it.
    prompts: what stands before and after each text, by task. conversations: the tasks whose texts have no such frame.
    """

    options: ExportOptions
    checkpoint: Checkpoint
    folder: Path
    size: int = 0
    examples: dict[str, int] = field(default_factory=dict)
    run: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    different: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    prompts: dict[str, tuple[str, str]] = field(default_factory=dict)
    conversations: list[str] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)
    asked: str = ""
    active: list[int] = field(default_factory=list)
    dtype: str = "float32"
    is_encoder_decoder: bool = False
    auto_class: str = "AutoModelForCausalLM"
    rank_loss: RankLoss | None = None
    sizes: Sizes | None = None
    thresholds: list[ThresholdRow] = field(default_factory=list)
    url: str | None = None
