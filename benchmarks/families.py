"""Every family of language models that transformers lists, tiny and random: does nlora compute what transformers does?

    python benchmarks/families.py                    # all of them, about ten minutes on one thread: docs/models.md
    python benchmarks/families.py llama t5 zamba2    # some of them

Each family's model goes through the parts of a run: laid out without weights, loaded, adapted, trained, scored, its
updates added up. Beside it the same model goes, loaded by transformers alone with the saved adapters in stock PEFT,
through one plain pass per example: no padding, no packing, no cache. A family is one of

    equal       loss, gradients, label scores, answers and two updates added up are the same
    refused     before anything is trained, in one line
    not made    transformers itself makes no model of it that reads text
    WRONG       anything else
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig

from nlora.adapters import Adapter, target_modules
from nlora.backbone import Backbone, load_backbone, load_skeleton
from nlora.config import EvaluateOptions, LoraOptions
from nlora.data.base import Example, Task
from nlora.data.collate import Collator
from nlora.data.encode import Encoded, Encoder
from nlora.data.pack import pack
from nlora.errors import NloraError
from nlora.evaluation import Evaluator
from nlora.factors import State
from nlora.greedy import is_plain
from nlora.label_tree import LabelTree, label_scores
from nlora.lean import lean
from nlora.learned import keep_updates
from nlora.logits import answer_logits
from nlora.packed import packed_attention, packing_is_exact
from nlora.reading import Reader
from tiny_families import FAMILIES, tiny_config, tiny_model

LORA = LoraOptions(r=2, alpha=4, dropout=0.0)
MOST_TOKENS = 5
"""Of a generated answer."""
TOLERANCE = 2e-3
"""Largest difference, of the largest number there is, that rounding may make."""
TIMEOUT_SECONDS = 120
LABELS = ("market", "fox", "lazy dog")
_TEXTS = (
    "the quick brown fox",
    "jumps over the lazy dog and runs to the market",
    "Science",
    "to sell its stock",
)


@dataclass(slots=True)
class Row:
    """What came out for one family."""

    family: str
    verdict: str = ""
    note: str = ""
    targets: str = ""
    path: str = ""
    off: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def task() -> Task:
    """Four texts of different lengths, with three labels of different lengths."""
    answers = (*LABELS, LABELS[0])
    examples = tuple(Example(str(i), text, answers[i]) for i, text in enumerate(_TEXTS))
    return Task("agnews", "TC", "What is the topic?", LABELS, examples, examples)


# --- one plain pass per example -----------------------------------------------------------------------------------


def plain_logits(model: Any, e: Encoded) -> Tensor:
    """(answer tokens, V): what predicts each token of an answer, in one pass over this example alone."""
    if model.config.is_encoder_decoder:
        logits = model(input_ids=torch.tensor([e.prompt_ids]), labels=torch.tensor([e.answer_ids])).logits
        return logits[0]  # type: ignore[no-any-return]
    ids = torch.tensor([[*e.prompt_ids, *e.answer_ids]])
    logits = model(input_ids=ids, use_cache=False).logits
    return logits[0, len(e.prompt_ids) - 1 : -1]  # type: ignore[no-any-return]


def plain_loss(model: Any, examples: Sequence[Encoded]) -> Tensor:
    losses = [
        F.cross_entropy(plain_logits(model, e).float(), torch.tensor(e.answer_ids), reduction="sum")
        for e in examples
    ]
    return torch.stack(losses).sum()


@torch.no_grad()
def plain_scores(model: Any, prompts: Sequence[Encoded], tree: LabelTree, end: int) -> Tensor:
    """(B, labels): log P of each label, a pass for each."""

    def score(prompt: Encoded, label: Sequence[int]) -> Tensor:
        logits = plain_logits(model, Encoded(prompt.prompt_ids, [*label, end]))[: len(label)]
        return logits.float().log_softmax(-1)[range(len(label)), list(label)].sum()

    return torch.stack([torch.stack([score(p, label) for label in tree.labels]) for p in prompts])


@torch.no_grad()
def plain_answer(model: Any, prompt: Encoded, end: int) -> tuple[list[int], float]:
    """The likeliest token after the likeliest token, and the smallest lead that one of them had."""
    answer: list[int] = []
    lead = float("inf")
    while len(answer) < MOST_TOKENS and end not in answer:
        logits = plain_logits(model, Encoded(prompt.prompt_ids, [*answer, end]))[-1].float()
        top = logits.topk(2)
        lead = min(lead, float(top.values[0] - top.values[1]) / float(logits.abs().max()))
        answer.append(int(top.indices[0]))
    return answer, lead


@torch.no_grad()
def generated(model: Any, prompt: Encoded, end: int) -> list[int]:
    """What `generate` answers to this prompt alone, by whatever rules the model has."""
    plan = GenerationConfig(
        max_new_tokens=MOST_TOKENS, do_sample=False, num_beams=1, eos_token_id=end, pad_token_id=0,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
    )  # fmt: skip
    begin = 1 if model.config.is_encoder_decoder else len(prompt.prompt_ids)
    ids = model.generate(input_ids=torch.tensor([prompt.prompt_ids]), generation_config=plan)
    return ids[0, begin:].tolist()  # type: ignore[no-any-return]


# --- nlora --------------------------------------------------------------------------------------------------------


def batch_loss(model: Any, backbone: Backbone, examples: Sequence[Encoded], packs: bool) -> Tensor:
    """As nlora trains on a batch."""
    collate = pack if packs else Collator(backbone.tokenizer.pad_token_id, backbone.encoder_decoder)
    with packed_attention(backbone.model) if packs else nullcontext():
        logits, targets = answer_logits(model, collate(examples))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")


@torch.no_grad()
def reading_scores(reader: Reader, prompts: Sequence[Encoded], tree: LabelTree) -> Tensor:
    """(B, labels): log P of each label, one label after another behind the prompts that were read once."""
    reading = reader.read(prompts)
    scores = []
    for label in tree.labels:
        logits = [reading.first[:, None]]
        if len(label) > 1:
            logits.append(reading.run(torch.tensor([label[:-1]] * len(prompts))))
            reading.forget(len(label) - 1)
        log_p = torch.cat(logits, dim=1).float().log_softmax(-1)
        scores.append(log_p[:, range(len(label)), list(label)].sum(1))
    return torch.stack(scores, dim=1)


def off(found: Tensor, wanted: Tensor, scale: Tensor | None = None) -> float:
    """Largest difference, of the largest number wanted."""
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    return float(
        (found - wanted).abs().max() / (wanted if scale is None else scale).abs().max().clamp(min=1e-12)
    )


def spread(adapter: Adapter, seed: int) -> None:
    """Give the fresh adapter a B that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for f in adapter.factors().values():
            f.B.copy_(torch.randn(f.B.shape, generator=generator) * 0.2)


def check(family: str, folder: Path, row: Row) -> None:
    """Fills in the row."""
    model_folder = folder / "model"
    try:
        make_folder(family, model_folder)
        original = plain_model(family, model_folder)
        with torch.no_grad():
            plain_logits(original, Encoded([5, 6, 7, 8], [9, 10]))
    except Exception as error:
        row.verdict, row.note = "not made", f"{type(error).__name__}: {error}"
        return
    step = "plan"
    try:
        targets = target_modules(load_skeleton(str(model_folder)), LORA)
        row.targets = ", ".join(dict.fromkeys(t.name.rpartition(".")[2] for t in targets))
        step = "load"
        backbone = load_backbone(str(model_folder))
        step = "attach"
        adapter = Adapter.attach(backbone.model, LORA, seed=1)
        step = "compare"
        compare(backbone, adapter, original, folder, row)
    except NloraError as error:
        row.verdict = "refused" if step != "compare" else "WRONG"
        row.note = str(error) if step != "compare" else f"late: {error}"
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/nlora/" in f.filename]
        at = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
        row.verdict, row.note = "WRONG", f"crash at {step}: {type(error).__name__}: {error}{at}"
    else:
        wrong = {name: value for name, value in row.off.items() if not value <= TOLERANCE}
        row.verdict = "WRONG" if wrong else "equal"
        row.note = row.note or ", ".join(f"{name} off by {value:.2g}" for name, value in wrong.items())


def compare(backbone: Backbone, adapter: Adapter, original: Any, folder: Path, row: Row) -> None:
    from peft import PeftModel

    spread(adapter, 1)
    adapter.save(folder / "first", base_model="")
    plain: Any = PeftModel.from_pretrained(original, str(folder / "first"), is_trainable=True)
    encoder = Encoder(
        backbone.tokenizer,
        encoder_decoder=backbone.encoder_decoder,
        max_source_tokens=200,
        max_target_tokens=MOST_TOKENS,
    )
    given = task()
    examples = list(encoder.encode(given, given.train))

    # Loss and gradients, in training mode; nothing drops out.
    packs = packing_is_exact(backbone.model)
    row.path = "packed" if packs else "padded"
    plain.train()
    wanted = plain_loss(plain, examples)
    wanted.backward()  # type: ignore[no-untyped-call]
    for name, leaner in (("loss", True), ("plain loss", False)):
        adapter.model.train()
        adapter.model.zero_grad()
        undo = lean(adapter.model) if leaner else lambda: None
        found = batch_loss(adapter.model, backbone, examples, packs)
        row.off[name] = off(found.detach(), wanted.detach())
        found.backward()  # type: ignore[no-untyped-call]
        undo()
        if leaner:
            row.off["gradient"], silent = gradients_off(adapter, plain)
            if silent:
                row.off["silent targets"] = float(len(silent))
                row.note = f"no gradient: {silent[0]}"
    adapter.model.eval()
    plain.eval()

    # Scores and answers.
    end = encoder.end_id
    tree = LabelTree.build(encoder.label_ids(LABELS), end)
    prompts = [Encoded(e.prompt_ids, []) for e in examples]
    expected = plain_scores(plain, prompts, tree, end)
    reader = Reader(backbone.model, prompts, pad_id=backbone.tokenizer.pad_token_id, packs=packs)
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].prompt_ids))
    found = reading_scores(reader, [prompts[i] for i in longest_first], tree)
    row.off["scores"] = off(found, expected[longest_first])
    row.off["padded scores"] = off(label_scores(backbone.model, reader.batch(prompts), tree), expected)
    answers_alike(backbone, encoder, plain, given, prompts, expected, row)

    # Two updates added up.
    merge(backbone, adapter, plain, examples, folder, row)


def gradients_off(adapter: Adapter, plain: Any) -> tuple[float, list[str]]:
    """Largest difference of a gradient, of the largest of its module; and the modules that got none in stock PEFT."""
    worst, silent = 0.0, []
    for name, f in adapter.factors().items():
        layer = plain.get_base_model().get_submodule(name)
        for mine, part in ((f.A, layer.lora_A), (f.B, layer.lora_B)):
            theirs = part["default"].weight.grad
            if theirs is None or not bool(theirs.any()):
                silent.append(name)
                if mine.grad is not None and bool(mine.grad.any()):
                    worst = float("inf")
                continue
            worst = max(worst, off(mine.grad, theirs) if mine.grad is not None else float("inf"))
    return worst, list(dict.fromkeys(silent))


def answers_alike(
    backbone: Backbone,
    encoder: Encoder,
    plain: Any,
    given: Task,
    prompts: Sequence[Encoded],
    scores: Tensor,
    row: Row,
) -> None:
    """How many labels and generated answers are others than they should be, but for near ties."""
    labels = Evaluator(backbone, encoder, EvaluateOptions(batch_size=3)).answer(given).texts
    best = [given.labels[i] for i in scores.argmax(1).tolist()] if given.labels else []
    lead = scores.topk(2, dim=1).values
    clear = (lead[:, 0] - lead[:, 1] > 2 * TOLERANCE * scores.abs().max()).tolist()
    row.off["labels"] = float(sum(a != b for a, b, sure in zip(labels, best, clear, strict=True) if sure))
    options = EvaluateOptions(batch_size=3, decode="generate")
    texts = Evaluator(backbone, encoder, options).answer(given).texts
    different = 0
    for prompt, text in zip(prompts, texts, strict=True):
        ids, least = plain_answer(plain, prompt, encoder.end_id)
        if not is_plain(plain.get_base_model()):
            ids = generated(plain, prompt, encoder.end_id)
        wanted = backbone.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        different += least > TOLERANCE and text != str(wanted).strip()
    row.off["answers"] = float(different)


@torch.no_grad()
def merge(
    backbone: Backbone, adapter: Adapter, plain: Any, examples: Sequence[Encoded], folder: Path, row: Row
) -> None:
    """Two updates in the backbone, against both adapters active in stock PEFT."""
    states: list[State] = [adapter.state()]
    spread(adapter, 2)
    adapter.save(folder / "second", base_model="")
    states.append(adapter.state())
    model: Any = adapter.detach()
    before = torch.cat([plain_logits(model, e) for e in examples])
    keep_updates(model, list(states[0])).fold(states)
    found = torch.cat([plain_logits(model, e) for e in examples])
    plain.load_adapter(str(folder / "second"), "second")
    plain.base_model.set_adapter(["default", "second"])
    wanted = torch.cat([plain_logits(plain, e) for e in examples])
    moved = wanted - before
    if float(moved.abs().max()) < 1e-4 * float(wanted.abs().max()):
        row.off["merged"], row.note = float("inf"), "the updates move nothing"
        return
    row.off["merged"] = off(found, wanted, scale=moved)


# --- folders, processes, table ------------------------------------------------------------------------------------


def make_folder(family: str, folder: Path) -> None:
    config = tiny_config(family)
    model = tiny_model(config, FAMILIES[family])
    model.save_pretrained(folder)
    config.save_pretrained(folder)  # as released: with the parts that this class leaves out
    tokenizer(bool(model.config.is_encoder_decoder)).save_pretrained(folder)


def plain_model(family: str, folder: Path) -> Any:
    """The model as transformers alone loads it."""
    import transformers

    seq2seq = FAMILIES[family] != "causal"
    auto: Any = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32).eval()


def tokenizer(encoder_decoder: bool) -> Any:
    """A byte-level BPE of 400 pieces: pad 0, end 1; an encoder's inputs end with the end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    text = " ".join(
        (*_TEXTS, "Task:TC Dataset:agnews\nWhat is the topic?\nOption: market, fox, lazy dog \nAnswer:")
    )
    backend.train_from_iterator(
        [text] * 4,
        trainers.BpeTrainer(
            vocab_size=380,
            special_tokens=["<pad>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if encoder_decoder:
        backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")


def tried(family: str) -> Row:
    """One family's row; whatever happens is caught."""
    begin = time.perf_counter()
    row = Row(family)
    with tempfile.TemporaryDirectory() as folder:
        check(family, Path(folder), row)
    row.note = " ".join(row.note.split())
    row.seconds = time.perf_counter() - begin
    return row


def in_a_process(family: str, call: Callable[[str], Row] = tried) -> Row:
    """The same in a process of its own, which may crash or hang."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(call(family)))
    process.start()
    sender.close()
    try:
        if receiver.poll(TIMEOUT_SECONDS):
            row: Row = receiver.recv()
            return row
        note = f"no answer in {TIMEOUT_SECONDS} s"
    except EOFError:
        note = "the process ended"
    finally:
        process.kill()
        process.join()
    return Row(family, "WRONG", note)


def line(row: Row) -> str:
    worst = max((v for k, v in row.off.items() if k not in {"labels", "answers"}), default=None)
    shown = "" if worst is None else f"{worst:.0e}"
    note = row.note.replace("|", "/")[:300]
    return f"| {row.family} | {row.verdict} | {row.targets} | {row.path} | {shown} | {note} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", help="model types; none: all")
    parser.add_argument("--here", action="store_true", help="in this process, for a debugger")
    arguments = parser.parse_args()
    import transformers

    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    print("| family | | adapted | trained | off by | note |\n| --- | --- | --- | --- | --- | --- |")
    counts: dict[str, int] = {}
    for family in arguments.families or sorted(FAMILIES):
        row = tried(family) if arguments.here else in_a_process(family)
        counts[row.verdict] = counts.get(row.verdict, 0) + 1
        print(line(row), flush=True)
        print(f"{row.family} {row.seconds:.1f}s {row.off}", file=sys.stderr, flush=True)
    print("\n" + ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
