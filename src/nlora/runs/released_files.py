"""The result files of one stage, with the released code's names, keys, rounding and line format.

These are `train_results.json`, `predict_results.json`, `all_results.json` (both together) and
`predict_eval_predictions.jsonl`. Keys are added to the released ones: `predict_exact_match_macro`, the mean over data
sets (the released `predict_exact_match` is pooled over examples); `decode`, how answers were made; `by_label`,
precision, recall and F1 of the labels of each task that has labels; what of a training the release did not have; and
what explains a single answer (docs/runs.md).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlora.evaluation.answer import Answer, percent
from nlora.evaluation.per_label import LabelCounts
from nlora.evaluation.text_metrics import DIGITS, released_scores
from nlora.runs.atomic import write_lines, write_text
from nlora.runs.layout import PREDICTIONS_FILE

Results = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer of the model.

    type, dataset: kind and name of the task.
    instruction: the released field: the prompt without its first two lines, with `{0}` in place of the sentence.
    prompt: the whole input text; None if unknown.
    exact, others, is_outside, own_score: as in `Answer`.
    routed_to: the task whose model a router chose; None without a router.
    """

    type: str
    dataset: str
    id: str
    sentence: str
    label: str
    instruction: str
    prediction: str
    prompt: str | None = None
    exact: bool = False
    others: tuple[str, ...] = ()
    is_outside: bool = False
    own_score: float | None = None
    routed_to: str | None = None

    @property
    def answer(self) -> Answer:
        """What is scored."""
        return Answer(
            self.sentence,
            self.label,
            self.prediction,
            self.exact,
            self.others,
            self.is_outside,
            self.own_score,
        )

    def line(self) -> dict[str, Any]:
        """A line of `predict_eval_predictions.jsonl`. The released line has the label twice; keys are added to it."""
        instance = {
            "id": self.id,
            "sentence": self.sentence,
            "label": self.label,
            "instruction": self.instruction,
            "ground_truth": self.label,
        }
        return {
            "Task": self.type,
            "Dataset": self.dataset,
            "Instance": instance,
            "Prediction": self.prediction,
            **({} if self.prompt is None else {"Prompt": self.prompt}),
            **({"Exact": True} if self.exact else {}),
            **({"Answers": [self.label, *self.others]} if self.others else {}),
            **({"Outside": True} if self.is_outside else {}),
            **({} if self.own_score is None else {"Score": self.own_score}),
            **({} if self.routed_to is None else {"Routed": self.routed_to}),
        }


def train_results(
    *, epochs: float, loss: float, runtime_seconds: float, samples: int, steps: int, padding_share: float
) -> Results:
    """The released keys of a training, and `train_padding_share`, the share of computed positions that is padding.

    loss: mean over the steps, penalty included (as released).
    samples: examples of the task. Each epoch sees all of them, and the rate counts every pass.
    """
    return {
        "epoch": float(epochs),
        "train_loss": loss,
        "train_samples": samples,
        "train_padding_share": round(padding_share, 4),
        **_speed("train", runtime_seconds, samples * epochs, steps),
    }


def predict_results(
    predictions: Sequence[Prediction],
    *,
    decode: str,
    runtime_seconds: float,
    steps: int,
    epochs: float | None = None,
    global_step: int | None = None,
    mean_tokens: float | None = None,
    by_label: Mapping[str, Any] | None = None,
) -> Results:
    """The released keys of an evaluation and the added ones, in percent. Raises ValueError without predictions.

    decode: `labels` or `generate`.
    steps: forward batches.
    epochs, global_step: how long the evaluated model was trained on its last task.
    mean_tokens: over the answers; left out if None.
    by_label: `label_results` of each task with labels; left out if there is none.
    """
    pairs = [p.answer.closest for p in predictions]
    texts, labels = [text for text, _ in pairs], [label for _, label in pairs]
    scores = released_scores(texts, labels, [p.type for p in predictions], [p.dataset for p in predictions])
    by_dataset = exact_match_by_dataset(predictions)
    macro = math.fsum(by_dataset.values()) / len(by_dataset)
    optional: Results = {
        "epoch": None if epochs is None else float(epochs),
        "predict_global_step": global_step,
        "predict_gen_len": None if mean_tokens is None else round(mean_tokens, 4),
    }
    return {
        **{f"predict_{key}": value for key, value in scores.items()},
        **{key: value for key, value in optional.items() if value is not None},
        **_speed("predict", runtime_seconds, len(predictions), steps),
        "predict_samples": len(predictions),
        "predict_exact_match_macro": round(macro, DIGITS),
        "decode": decode,
        **({"by_label": by_label} if by_label else {}),
    }


def label_results(counts: Mapping[str, LabelCounts], outside: int) -> dict[str, Any]:
    """The value of `by_label` for a task: percent by label, null where a share is of nothing, and numbers of examples.

    outside: answers that are none of the labels.
    """
    return {
        "labels": {
            label: {
                "precision": _percent(found.precision),
                "recall": _percent(found.recall),
                "f1": _percent(found.f1),
                "support": found.support,
                "answered": found.answered,
            }
            for label, found in counts.items()
        },
        "outside": outside,
    }


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, DIGITS)


def exact_match_by_dataset(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Exact match of each data set in percent, not rounded: the entries of a row of R."""
    answers: dict[str, list[Answer]] = {}
    for p in predictions:
        answers.setdefault(p.dataset, []).append(p.answer)
    return {dataset: percent(given, "exact_match") for dataset, given in answers.items()}


def write_results(folder: Path, train: Results, predict: Results, predictions: Iterable[Prediction]) -> None:
    """Write the four files into a stage's folder. Raises RunError when they cannot be written."""
    write_text(folder / "train_results.json", _json(train))
    write_text(folder / "predict_results.json", _json(predict))
    write_text(folder / "all_results.json", _json({**predict, **train}))
    lines = (f"{json.dumps(prediction.line())}\n" for prediction in predictions)
    write_lines(folder / PREDICTIONS_FILE, lines)


def _speed(split: str, seconds: float, samples: float, steps: int) -> Results:
    rates = {"samples": samples, "steps": steps}
    return {
        f"{split}_runtime": round(seconds, 4),
        **{
            f"{split}_{name}_per_second": round(count / seconds, 3) if seconds else None
            for name, count in rates.items()
        },
    }


def _json(results: Results) -> str:
    """The Trainer's format for metrics: sorted, indented by four. JSON has no NaN, so NaN becomes null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in results.items()}
    return json.dumps(finite, indent=4, sort_keys=True, allow_nan=False)
