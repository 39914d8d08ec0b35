"""The cost of the preflight check before a run, and of labels that begin alike.

    python benchmarks/preflight.py demo
    python benchmarks/preflight.py --labels 1000 --model smollm2
    python benchmarks/preflight.py demo dtype=bfloat16 --rounding

The first: seconds of the preflight check of a recipe or file on its own texts, and how many of its optimizer steps
take as long. The second: random prompts over this many labels with the same beginning, c000 c001 ...; the search of the
likeliest one against scoring every label, and whether both name the same. The third: how far rounding moves the logits
of a recipe's prompts, and how far mistakes do, which the check has to tell apart.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import measure
from measure import Spread
from nlora.config.load import load_config
from nlora.data.task import TokenizedExample
from nlora.evaluation.label_scoring import LabelTree, _scores
from nlora.evaluation.prefill import Prefill, Prefiller
from nlora.models.backbone import load_backbone, load_tokenizer
from nlora.models.inspection import logits_off
from nlora.models.lora_adapter import LoraAdapter
from nlora.models.packed_attention import packing_is_exact
from nlora.runs.plan import make_plan
from nlora.runs.preflight import preflight, probes
from nlora.training.trainer import train
from one_line import one_line_errors


def of_recipe(source: str, overrides: Sequence[str], rounds: int) -> dict[str, Spread]:
    """Seconds of the preflight check, and of an optimizer step of the first task, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(load_config(source, [*overrides, f"output_dir={folder}/run"]))
        config, examples = plan.config, plan.encoded[0]
        backbone = load_backbone(config.model, dtype=config.dtype)
        options = config.train_options(plan.tasks[0].name)
        some = [examples[i] for i in range(min(len(examples), 10 * options.batch_size))]

        def tried(seed: int) -> float:
            begin = time.perf_counter()
            preflight(backbone, [probes(task, plan.encoder) for task in plan.tasks], lora=config.lora)
            return time.perf_counter() - begin

        def trained(seed: int) -> float:
            adapter = LoraAdapter.attach(backbone.model, config.lora, seed=seed)
            one = options.model_copy(update={"epochs": 1, "report_to": ()})
            result = train(backbone, adapter, some, one, penalty=lambda: None, seed=seed, folder=Path(folder))
            adapter.detach()
            return result.seconds / result.steps

        found = measure.interleave({"preflight": tried, "step": trained}, rounds)
    return {
        "preflight seconds": Spread.of(found["preflight"]),
        "step seconds": Spread.of(found["step"]),
        "steps": measure.ratios(found["preflight"], found["step"]),
    }


def of_labels(model: str, count: int, prompts: int, rounds: int) -> dict[str, Spread]:
    """Seconds of the search and of scoring every label, in turn; passes of the search."""
    backbone = load_backbone(model)
    tokenizer = load_tokenizer(model)
    width = len(str(count - 1))
    ids = [tokenizer(f" c{i:0{width}}", add_special_tokens=False)["input_ids"] for i in range(count)]
    tree = LabelTree.build(ids, end_id=int(tokenizer.eos_token_id or 0))
    packs = packing_is_exact(backbone.model)
    answers: dict[str, list[list[int]]] = {"search": [], "every label": []}
    passes = []

    def score(seed: int, name: str) -> float:
        draw = random.Random(seed)
        texts = [
            TokenizedExample([draw.randrange(5, len(tokenizer)) for _ in range(40)], [])
            for _ in range(prompts)
        ]
        begin = time.perf_counter()
        with torch.inference_mode():
            prefill = Prefiller(backbone.model, texts, pad_id=0, packs=packs).run(texts)
            counted = _Counted(prefill)
            scores = _scores(counted, tree, all_labels=name == "every label")
        answers[name].append(scores.argmax(1).tolist())
        if name == "search":
            passes.append(float(counted.passes))
        return time.perf_counter() - begin

    found = measure.interleave(
        {name: lambda seed, name=name: score(seed, name) for name in answers},  # type: ignore[misc]
        rounds,
    )
    if sorted(answers["search"]) != sorted(answers["every label"]):
        raise SystemExit("the search and scoring every label name different ones")
    return {
        "search seconds": Spread.of(found["search"]),
        "passes": Spread.of(passes),
        "every label seconds": Spread.of(found["every label"]),
        "times": measure.ratios(found["every label"], found["search"]),
    }


@torch.no_grad()
def of_rounding(source: str, overrides: Sequence[str]) -> dict[str, str]:
    """How far logits are from those of the prompt alone, over all prompts together and for the single ones.

    The first lines are other ways to the same logits. In the others, every prompt has a mistake.
    """
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(load_config(source, [*overrides, f"output_dir={folder}/run"]))
    backbone = load_backbone(plan.config.model, dtype=plan.config.dtype)
    model = backbone.model.eval()
    alone: list[torch.Tensor] = []
    ways: dict[str, list[torch.Tensor]] = defaultdict(list)
    for e in (example for task in plan.tasks for example in probes(task, plan.encoder)):
        ids = torch.tensor([[*e.prompt_ids, *e.answer_ids[:-1]]])
        length, count = ids.shape[1], len(e.answer_ids)
        places = torch.arange(length)[None]

        def logits(
            ids: torch.Tensor, keep: int = count, **inputs: torch.Tensor
        ) -> torch.Tensor:  # (answer tokens, V)
            found: torch.Tensor = model(input_ids=ids, use_cache=False, **inputs).logits[0, -keep:]
            return found

        def without(place: int, ids: torch.Tensor = ids, places: torch.Tensor = places) -> torch.Tensor:
            return logits(ids, attention_mask=(places != place).long(), position_ids=places)

        alone.append(logits(ids))
        ways["in a batch of 8"].append(logits(ids.repeat(8, 1)))
        padded = torch.cat([torch.zeros_like(ids[:, :30]), ids], dim=1)
        there = torch.cat([torch.zeros_like(ids[:, :30]), torch.ones_like(ids)], dim=1)
        ways["padded"].append(
            logits(padded, attention_mask=there, position_ids=(there.cumsum(1) - 1).clamp(min=0))
        )
        ways["a token near the end not seen"].append(without(length - count - 3))
        ways["the token in the middle not seen"].append(without(length // 2))
        ways["positions off by one from the middle"].append(
            logits(ids, position_ids=places + (places >= length // 2))
        )
    told = {}
    for name, found in ways.items():
        each = [logits_off(model, one, other) for one, other in zip(found, alone, strict=True)]
        together = logits_off(model, torch.cat(found), torch.cat(alone))
        told[name] = f"{together:.3f} ({min(each):.3f} to {max(each):.3f})"
    return told


class _Counted:
    """A reading whose passes are counted."""

    def __init__(self, prefill: Prefill) -> None:
        self._prefill, self.passes = prefill, 0
        self.next_logits = prefill.next_logits

    @property
    def rows(self) -> list[int]:
        return self._prefill.rows

    def extend(self, tokens: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return self._prefill.extend(tokens)

    def rollback(self, count: int) -> None:
        self._prefill.rollback(count)

    def select_rows(self, rows: Sequence[int]) -> None:
        self._prefill.select_rows(rows)


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one line for each figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", default="demo", help="recipe or file (default: demo)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument(
        "--labels", type=int, default=0, help="labels that begin alike; 0: the preflight check instead"
    )
    parser.add_argument(
        "--rounding", action="store_true", help="rounding and mistakes instead of the preflight check"
    )
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--model", default="smollm2", help="of --labels")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    figures: Mapping[str, object]
    if given.rounding:
        figures = of_rounding(given.source, given.overrides)
    elif given.labels:
        figures = of_labels(given.model, given.labels, given.prompts, given.rounds)
    else:
        figures = of_recipe(given.source, given.overrides, given.rounds)
    print(measure.described(measure.machine()))
    for name, spread in figures.items():
        print(f"{name:{max(map(len, figures))}}  {spread}")


if __name__ == "__main__":
    main()
