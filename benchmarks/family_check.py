"""One family's tiny model through the parts of a run, and beside it through transformers and stock PEFT alone.

row = check("deepseek_v3")
row.verdict                         # equal, refused, not made, WRONG: see `families`
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nlora.config.schema import EvaluateOptions, LoraOptions
from nlora.data.collate import IGNORED, Collator
from nlora.data.packing import pack
from nlora.data.task import Example, Task, TokenizedExample
from nlora.data.tokenize import ExampleTokenizer
from nlora.errors import NloraError
from nlora.evaluation.evaluator import Evaluator
from nlora.evaluation.greedy import is_plain
from nlora.evaluation.label_scoring import LabelTree
from nlora.evaluation.prefill import Prefiller
from nlora.models.backbone import Backbone, load_backbone, load_skeleton
from nlora.models.fast_paths import FastPaths
from nlora.models.logits import answer_logits
from nlora.models.lora_adapter import LoraAdapter
from nlora.models.packed_attention import packed_attention
from nlora.models.target_modules import default_names
from nlora.runs.preflight import preflight, probes
from nlora.runs.update_history import keep_updates
from nlora.training.fast_modules import fast_modules
from one_pass import generated, plain_answer, plain_logits, plain_loss, plain_scores
from tiny_families import tiny_folder

LORA = LoraOptions(r=2, alpha=4, dropout=0.0)
MOST_TOKENS = 5
"""Of a generated answer."""
TOLERANCE = 2e-3
"""Largest difference, of the largest number there is, that rounding may make."""
_LABELS = ("market", "fox", "lazy dog")
_TEXTS = (
    "the quick brown fox",
    "jumps over the lazy dog and runs to the market",
    "Science",
    "to sell its stock",
)


@dataclass(slots=True)
class Row:
    """What came out for one family. off: by how much what nlora computes is off, of the largest number."""

    family: str
    verdict: str = ""
    note: str = ""
    targets: str = ""
    path: str = ""
    off: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        worst = f"{max(self.off.values()):.0e}" if self.off else ""
        return f"| {self.family} | {self.verdict} | {self.targets} | {self.path} | {worst} | {self.note} |"


def task() -> Task:
    """Four texts of different lengths, with three labels of different lengths."""
    answers = (*_LABELS, _LABELS[0])
    examples = tuple(Example(str(i), text, answers[i]) for i, text in enumerate(_TEXTS))
    return Task("agnews", "TC", "What is the topic?", _LABELS, examples, examples)


def check(family: str) -> Row:
    """One family's row; whatever happens is caught."""
    row = Row(family)
    with tempfile.TemporaryDirectory() as folder:
        _check(row, Path(folder))
        note = " ".join(row.note.split()).replace("|", "/").replace(f"model {folder}/model: ", "")
        row.note = note if len(note) < 400 else note[:397] + "..."
    return row


def _check(row: Row, folder: Path) -> None:
    model_folder = str(folder / "model")
    try:
        original = tiny_folder(row.family, folder / "model")
        with torch.no_grad():
            plain_logits(original, TokenizedExample([5, 6, 7, 8], [9, 10, 11, 12]))
    except Exception as error:
        row.verdict, row.note = "not made", f"{type(error).__name__}: {error}"
        return
    trained = False
    try:
        row.targets = ", ".join(default_names(load_skeleton(model_folder)))
        backbone = load_backbone(model_folder)
        encoder = ExampleTokenizer(
            backbone.tokenizer,
            encoder_decoder=backbone.encoder_decoder,
            max_source_tokens=200,
            max_target_tokens=MOST_TOKENS,
        )
        paths = preflight(backbone, [probes(task(), encoder)], lora=LORA, generates=True)
        row.path = f"{paths.training}{'' if paths.fast_modules else ', as it is'}, " + (
            paths.prefill if paths.kv_cache else f"{paths.prefill} again"
        )
        trained = True
        _Comparison(backbone, encoder, paths, original, folder, row).all()
    except NloraError as error:
        row.verdict, row.note = "WRONG" if trained else "refused", str(error)
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/nlora/" in f.filename]
        at = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
        row.verdict, row.note = "WRONG", f"{type(error).__name__}: {error}{at}"
    else:
        wrong = {name: value for name, value in row.off.items() if not value <= TOLERANCE}
        row.verdict = "WRONG" if wrong else "equal"
        row.note = ", ".join(f"{name} off by {value:.2g}" for name, value in wrong.items()) or row.note


class _Comparison:
    """nlora's model with an adapter beside the original with the same adapter in stock PEFT."""

    def __init__(
        self,
        backbone: Backbone,
        encoder: ExampleTokenizer,
        paths: FastPaths,
        original: Any,
        folder: Path,
        row: Row,
    ) -> None:
        from peft import PeftModel

        self._backbone, self._encoder, self._paths, self._row = backbone, encoder, paths, row
        self._folder = folder
        self._adapter = LoraAdapter.attach(backbone.model, LORA, seed=1)
        _spread(self._adapter, 1)
        self._adapter.save(folder / "first", base_model="")
        self._plain: Any = PeftModel.from_pretrained(original, str(folder / "first"), is_trainable=True)
        self._must_be_loaded("default")
        self._task = task()
        self._examples = list(encoder.encode(self._task, self._task.train))
        self._prompts = [TokenizedExample(e.prompt_ids, []) for e in self._examples]

    @torch.no_grad()
    def _must_be_loaded(self, name: str) -> None:
        """Of some models PEFT finds no layer of an adapter, not even of one that it saved: it gets the numbers then."""
        for module, f in self._adapter.factors().items():
            layer = self._plain.get_base_model().get_submodule(module)
            for mine, theirs in ((f.A, layer.lora_A[name].weight), (f.B, layer.lora_B[name].weight)):
                if not torch.equal(mine, theirs):
                    self._row.note = "stock PEFT does not load an adapter of this model, its own neither"
                    theirs.copy_(mine)

    def all(self) -> None:
        """Fills in the row."""
        self._training()
        self._adapter.model.eval()
        self._plain.eval()
        self._scores()
        self._answers()
        self._two_updates()

    def _training(self) -> None:
        """In training mode; nothing drops out."""
        self._plain.train()
        self._adapter.model.train()
        wanted = plain_loss(self._plain, self._examples)
        wanted.backward()  # type: ignore[no-untyped-call]
        single = self._paths.training == "single"
        with fast_modules(self._adapter.model) if self._paths.fast_modules else nullcontext():
            losses = [
                self._loss(some) for some in ([[e] for e in self._examples] if single else [self._examples])
            ]
            found = torch.stack(losses).sum()
            found.backward()  # type: ignore[no-untyped-call]
        self._row.off["loss"] = _off(found.detach(), wanted.detach())
        self._row.off["gradient"] = max(self._gradients_off())

    def _loss(self, examples: Sequence[TokenizedExample]) -> Tensor:
        """As nlora trains on a batch."""
        model: Any = self._backbone.model
        if self._paths.training == "packed":
            with packed_attention(model):
                logits, targets = answer_logits(self._adapter.model, pack(examples))
        else:
            collate = Collator(self._backbone.tokenizer.pad_token_id, self._backbone.encoder_decoder)
            logits, targets = answer_logits(self._adapter.model, collate(examples))
        flat = logits.flatten(0, 1).float()
        return F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORED, reduction="sum")

    def _gradients_off(self) -> list[float]:
        """Of each factor, of the largest gradient of its module; 1 where one has a gradient and the other none."""
        off = []
        for name, f in self._adapter.factors().items():
            layer = self._plain.get_base_model().get_submodule(name)
            for mine, part in ((f.A.grad, layer.lora_A), (f.B.grad, layer.lora_B)):
                theirs = part["default"].weight.grad
                pair = [torch.zeros(1) if g is None else g for g in (mine, theirs)]
                off.append(_off(*pair) if any(bool(g.any()) for g in pair) else 0.0)
        return off

    @torch.no_grad()
    def _scores(self) -> None:
        """Of each label, one after another behind the prompts that were read once."""
        tree = self._tree = LabelTree.build(self._encoder.label_ids(_LABELS), self._encoder.end_id)
        self._expected = plain_scores(self._plain, self._prompts, tree, self._encoder.end_id)
        prefiller = Prefiller(
            self._backbone.model,
            self._prompts,
            pad_id=self._backbone.tokenizer.pad_token_id,
            packs=self._paths.prefill == "packed",
            kv_cache=self._paths.kv_cache,
        )
        order = sorted(range(len(self._prompts)), key=lambda i: -len(self._prompts[i].prompt_ids))
        for some in [[i] for i in order] if self._paths.prefill == "single" else [order]:
            prefill = prefiller.run([self._prompts[i] for i in some])
            for column, label in enumerate(tree.labels):
                logits = [prefill.next_logits[:, None]]
                if len(label) > 1:
                    logits.append(prefill.extend(torch.tensor([label[:-1]] * len(some))))
                    prefill.rollback(len(label) - 1)
                log_p = torch.cat(logits, dim=1).float().log_softmax(-1)
                found = log_p[:, range(len(label)), list(label)].sum(1)
                off = _off(found, self._expected[some, column], scale=self._expected)
                self._row.off["scores"] = max(off, self._row.off.get("scores", 0.0))

    def _answers(self) -> None:
        """How many labels and generated answers are others than they should be, but for near ties."""
        options = EvaluateOptions(batch_size=3)
        labels = Evaluator(self._backbone, self._encoder, options, self._paths).answer(self._task).texts
        best = [_LABELS[i] for i in self._expected.argmax(1).tolist()]
        lead = self._expected.topk(2, dim=1).values
        clear = (lead[:, 0] - lead[:, 1] > 2 * TOLERANCE * self._expected.abs().max()).tolist()
        wrong = [sure and a != b for a, b, sure in zip(labels, best, clear, strict=True)]
        self._row.off["labels"] = float(sum(wrong))
        options = EvaluateOptions(batch_size=3, decode="generate")
        texts = Evaluator(self._backbone, self._encoder, options, self._paths).answer(self._task).texts
        self._row.off["answers"] = float(sum(map(self._differs, self._prompts, texts)))

    def _differs(self, prompt: TokenizedExample, text: str) -> bool:
        end = self._encoder.end_id
        ids, least_lead = plain_answer(self._plain, prompt, end, MOST_TOKENS)
        if not is_plain(self._plain.get_base_model()):
            ids = generated(self._plain, prompt, end, MOST_TOKENS)
        tokenizer = self._backbone.tokenizer
        # Random models answer with the padding token, too. Some hide it wherever it stands. To others earlier tokens
        # are alike after it, as its embedding is zero. So what follows it is not compared.
        is_cut = tokenizer.pad_token_id in ids
        ids = ids[: ids.index(tokenizer.pad_token_id)] if is_cut else ids
        decoded = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        wanted = str(decoded).strip()
        return least_lead > TOLERANCE and (text[: len(wanted)] if is_cut else text) != wanted

    @torch.no_grad()
    def _two_updates(self) -> None:
        """Both added up in the backbone, against both adapters active in stock PEFT, of what they change."""
        states = [self._adapter.state()]
        _spread(self._adapter, 2)
        self._adapter.save(self._folder / "second", base_model="")
        states.append(self._adapter.state())
        model: Any = self._adapter.detach()
        before = torch.cat([plain_logits(model, e) for e in self._examples])
        keep_updates(model, list(states[0])).activate(states)
        found = torch.cat([plain_logits(model, e) for e in self._examples])
        self._plain.load_adapter(str(self._folder / "second"), "second")
        self._must_be_loaded("second")
        self._plain.base_model.set_adapter(["default", "second"])
        wanted = torch.cat([plain_logits(self._plain, e) for e in self._examples])
        if float((wanted - before).abs().max()) < 1e-4 * float(wanted.abs().max()):
            raise AssertionError("the updates change nothing, so nothing is compared")
        self._row.off["sum"] = _off(found, wanted, scale=wanted - before)


def _off(found: Tensor, wanted: Tensor, scale: Tensor | None = None) -> float:
    """The largest difference, of the largest number wanted."""
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    scale = wanted if scale is None else scale
    return float((found - wanted).abs().max() / scale.abs().max().clamp(min=1e-12))


def _spread(adapter: LoraAdapter, seed: int) -> None:
    """Give the fresh adapter a B that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for f in adapter.factors().values():
            f.B.copy_(torch.randn(f.B.shape, generator=generator) * 0.2)
