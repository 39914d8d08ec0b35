"""Every family of language models that transformers lists, tiny and random: does nlora compute what transformers does?

    python benchmarks/families.py                    # all of them, eight minutes on one thread: docs/models.md
    python benchmarks/families.py llama t5 zamba2    # some of them

Each family's model goes through the parts of a run: laid out without weights, loaded, tried out, adapted, trained,
scored, its updates added up. Beside it goes the same model, loaded by transformers alone with the saved adapters in
stock PEFT, through one plain pass per example (`one_pass`). A family is one of

    equal       loss, gradients, label scores, answers, and two updates added up are the same
    refused     before anything is trained, in one line
    not made    transformers itself makes no tiny model of it that reads text
    WRONG       anything else
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import warnings

import peft
import torch
import transformers

from family_check import Row, check
from tiny_families import FAMILIES

TIMEOUT_SECONDS = 120
_PAGE = """# Models

nlora has no list of model families. It looks at a model's own layers and, before anything is
trained, checks every way through the model on the run's own texts (`nlora.runs.preflight`). This
page shows whether that comes out right for every family of language models that transformers
lists: causal, encoder-decoder, and those that also read images or sounds, with text alone. Each
family's model, tiny and random, goes through the parts of a run. The same model in plain
transformers, with the saved adapters in stock PEFT, gets one pass per example without padding,
packing or cache. This page is printed by the following command (eight minutes; with names, only
these families):

```sh
python benchmarks/families.py > docs/models.md
```

- equal: loss, gradients of every adapted layer, label scores, answers, and the sum of two updates
  are the same; the largest difference is under "off by", as a share of the largest number.
- refused: `nlora check` or `nlora run` says so before anything is trained, in the line shown here.
- not made: no tiny model that reads text alone could be made; the reason is transformers' own.

The query and value projections are adapted, found by the ends of their names: this is what
`lora.targets: null` means. A batch's examples are packed into one row of tokens, padded, or run as
single rows. "again" means that the whole prompt is read again with what follows it, because the
model keeps too little of it. A name with "(decoder)" is the decoder alone of a model with an
encoder. Random weights say nothing about how well a model learns.

Made with {versions}.

| family | | adapted | trained, scored | off by | why |
| --- | --- | --- | --- | --- | --- |"""


def in_a_process(family: str) -> Row:
    """`check` in a process of its own, which may crash or hang; forked, as the imports take longer than a check."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(check(family)))
    process.start()
    sender.close()
    try:
        if receiver.poll(TIMEOUT_SECONDS):
            row: Row = receiver.recv()
            return row
        return Row(family, "WRONG", f"no answer in {TIMEOUT_SECONDS} s")
    except EOFError:
        return Row(family, "WRONG", "the process ended")
    finally:
        process.kill()
        process.join()


def quiet() -> None:
    """No warnings or bars of others, no look at a hub, one thread."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", help="model types of transformers; none: all")
    names = parser.parse_args().families or sorted(FAMILIES)
    quiet()
    print(_PAGE.format(versions=f"transformers {transformers.__version__}, peft {peft.__version__}"))
    counts: dict[str, int] = {}
    for family in names:
        begin = time.perf_counter()
        row = in_a_process(family)
        counts[row.verdict] = counts.get(row.verdict, 0) + 1
        print(row, flush=True)
        if not sys.stdout.isatty():
            print(
                f"{family}: {row.verdict}, {time.perf_counter() - begin:.1f} s", file=sys.stderr, flush=True
            )
    print("\n" + ", ".join(f"{verdict}: {count}" for verdict, count in sorted(counts.items())) + ".")


if __name__ == "__main__":
    main()
