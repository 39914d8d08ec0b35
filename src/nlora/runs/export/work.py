"""Makes one export: the model in memory, its answers, the files, and the answers of what was loaded again."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora.data.prompts import frame
from nlora.errors import InputErrors, Problem
from nlora.models.backbone import BUILTIN_MODEL, auto_class
from nlora.runs.checkpoint import Checkpoint, merged
from nlora.runs.events import Progress
from nlora.runs.export import forms, reloaded, sparse
from nlora.runs.export.base_name import hub_name
from nlora.runs.export.combine import CombinedUpdate, Update
from nlora.runs.export.in_memory import UpdatedBackbone
from nlora.runs.export.options import ExportOptions
from nlora.runs.export.result import Export
from nlora.runs.export.updates import StageUpdates, answers_task, updates_of
from nlora.runs.export.verify import Answering, Texts, refuse, scores, tasks_to_check

if TYPE_CHECKING:
    from nlora.models.backbone import Backbone
    from nlora.models.lora_factors import LoraFactors


class Work:
    """One export."""

    def __init__(
        self, checkpoint: Checkpoint, options: ExportOptions, index: int, folder: Path, progress: Progress
    ) -> None:
        self._checkpoint, self._options, self._index = checkpoint, options, index
        self._folder, self._progress = folder, progress
        self._found = Export(options, checkpoint, folder)

    def run(self) -> Export:
        checkpoint, options = self._checkpoint, self._options
        updates = updates_of(checkpoint)
        self._check_rank(updates)
        wanted = answers_task(checkpoint, options, self._index, updates)
        self._tasks = tasks_to_check(checkpoint, options.examples, wanted)
        self._answering = Answering(checkpoint, self._tasks, self._progress)
        expected = self._write(updates)
        gc.collect()  # the model that was written, before it is loaded again
        again = reloaded.load(self._folder, options.form, self._found.adapters, checkpoint, updates)
        answerer = self._answering.by(again.backbone)
        answers = answerer.answer(again.activate)
        refuse(
            answerer.differences(expected, answers, again.activate),
            "the export, loaded again, does not answer as the model it was made from",
        )
        self._is_quantized = getattr(again.backbone.model, "is_quantized", False)
        stored = {checked.task.name: checked.stored_texts for checked in self._tasks}
        if self._is_exact:
            refuse(
                answerer.differences(stored, answers, again.activate),
                f"the export does not answer as {checkpoint.name} of the run did",
            )
        found = self._found
        found.is_encoder_decoder = again.backbone.encoder_decoder
        backbone_config: Any = again.backbone.model.config
        found.auto_class = auto_class(backbone_config, again.backbone.name).__name__
        if checkpoint.config.model == BUILTIN_MODEL and options.form != "merged":
            found.notes.append(
                f"the run computed with a 4-bit file of {hub_name(BUILTIN_MODEL)} (Q4_1), made float32 again, and so "
                "did this check; over the hub's own weights, single answers may differ"
            )
        if self._is_routed:
            found.notes.append(
                "the run guessed the task of each text, so a wrong guess had another model answer; the export is the "
                "model of the task itself"
            )
        elif options.is_exact and not self._is_exact:
            found.notes.append(
                "the run answered in 16 bits or with a quantized backbone, and the export is checked in float32 where "
                "it can be; single answers may differ"
            )
        tasks = [checked.task for checked in self._tasks]
        found.prompts = {task.name: frame(task) for task in tasks if not task.chat}
        found.conversations = [task.name for task in tasks if task.chat]
        found.asked = next(iter([*found.prompts, *found.conversations]), checkpoint.config.tasks[0].name)
        if updates is not None:
            index = [task.name for task in checkpoint.config.tasks].index(found.asked)
            found.active = updates.places(index)
        found.examples = {checked.task.name: len(checked.stored) for checked in self._tasks}
        found.run, found.scores = scores(self._tasks, stored), scores(self._tasks, answers)
        found.different = {
            name: sum(a != b for a, b in zip(stored[name], answers[name], strict=True)) for name in stored
        }
        return found

    @property
    def _is_exact(self) -> bool:
        """Whether the export must give the run's own answers: not if the run rounds otherwise, or guesses tasks."""
        config = self._checkpoint.config
        is_plain = config.dtype == "float32" and not self._is_quantized
        return self._options.is_exact and is_plain and not self._is_routed

    @property
    def _is_routed(self) -> bool:
        return self._checkpoint.config.serve == "routed"

    def _check_rank(self, updates: StageUpdates | None) -> None:
        rank = self._options.rank
        if updates is None or rank is None:
            return
        if rank > (full := self._combined(updates).full_rank()):
            hint = "; without --rank it is exact" if self._options.merge == "sum" else ""
            raise InputErrors([Problem("--rank", f"{rank} is above the update's full rank {full}{hint}")])

    def _combined(self, updates: StageUpdates, index: int | None = None) -> CombinedUpdate:
        options, seed = self._options, self._checkpoint.config.seed
        states = [u.state for u in updates.active_for(self._index if index is None else index)]
        return CombinedUpdate(states, options.merge, options.share_kept, seed)

    def _write(self, updates: StageUpdates | None) -> Texts:
        """Writes the export; returns the answers of the model in memory that it should equal."""
        if updates is None:
            return self._write_merged(merged(self._checkpoint, 0), {})
        model = self._bare(updates)
        form, base = self._options.form, self._checkpoint.config.model
        if form in ("merged", "sparse") and not model.takes_updates:
            what = f"the weights of {base} are quantized or shared by several layers; use --as adapter or adapters"
            raise InputErrors([Problem("--as", what)])
        if form == "adapters":
            self._found.adapters = forms.write_adapters(updates.trained, self._folder)
            return self._answering.by(model.backbone).answer(lambda i: model.set(self._combined(updates, i)))
        combined = self._combined(updates)
        if form == "merged":
            model.set(combined)
            return self._write_merged(model.backbone, combined)
        if form == "adapter":
            return self._write_adapter(model, combined, updates)
        return self._write_sparse(model, combined)

    def _bare(self, updates: StageUpdates) -> UpdatedBackbone:
        """The backbone without updates: for `merged` that of `Run.model`, else the one that the export is loaded over.

        They differ where the run has rounded the backbone's stored weights to 16 bits.
        """
        names = list(dict.fromkeys(name for update in updates.trained for name in update.state))
        if self._options.form == "merged":
            return UpdatedBackbone(merged(replace(self._checkpoint, stage=0), 0), names)
        return UpdatedBackbone(reloaded.bare(self._checkpoint.config), names)

    def _write_merged(self, backbone: Backbone, update: Mapping[str, Update]) -> Texts:
        """update: what is merged into the weights; empty for a method that trains the weights themselves."""
        weights = next(p for p in backbone.model.parameters() if p.is_floating_point())
        self._found.dtype = dtype = self._options.dtype or str(weights.dtype).removeprefix("torch.")
        backbone.model.float()
        if dtype != "float32":
            if update:
                self._found.notes.append(forms.rounding_note(backbone.model, update, dtype))
            forms.round_weights(backbone.model, dtype)
        answerer = self._answering.by(backbone)
        answers = answerer.answer()
        forms.write_merged(backbone, self._folder, dtype, answerer.end_ids)
        return answers

    def _write_adapter(
        self, model: UpdatedBackbone, combined: CombinedUpdate, updates: StageUpdates
    ) -> Texts:
        factors: Mapping[str, Update]
        if self._options.rank is None:
            factors = dict(combined)
        else:
            factors, loss = forms.recompressed(combined, self._options.rank)
            self._found.rank_loss = loss
            self._found.notes.append(str(loss))
        plain: dict[str, LoraFactors] = factors  # type: ignore[assignment]  # a sum, or recompressed
        forms.write_adapter(
            plain, updates.active_for(self._index), self._folder, self._checkpoint.config.model
        )
        model.set(plain)
        return self._answering.by(model.backbone).answer()

    def _write_sparse(self, model: UpdatedBackbone, combined: CombinedUpdate) -> Texts:
        answerer = self._answering.by(model.backbone)
        self._found.sizes = size = sparse.sizes(combined)
        chosen, several = sparse.thresholds(self._options.threshold, size.rms)
        answers: dict[float, Texts] = {}
        for threshold, kept in zip(several, sparse.count_kept(combined, several), strict=True):
            model.set(sparse.AboveThreshold(combined, threshold))
            answers[threshold] = answerer.answer()
            factor = threshold / size.rms if size.rms else 0.0
            row = sparse.ThresholdRow(
                threshold,
                factor,
                kept,
                kept / size.entries,
                is_stored=threshold == chosen,
                scores=scores(self._tasks, answers[threshold]),
            )
            self._found.thresholds.append(row)
        sparse.write_sparse(
            sparse.AboveThreshold(combined, chosen), self._folder, self._checkpoint.config.model
        )
        return answers[chosen]
