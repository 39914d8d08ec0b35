"""Where a run follows the released code, in words: printed when it starts and stored in summary.json.

>>> for line in protocol_notes(Config(tasks=["agnews"], train={"batches": "random"})):
...     print(line)
batches are drawn at random, not by length (train.batches: random)

`protocol: released` is a set of defaults (`nlora.config.schema.RELEASED_CHOICES`) and two choices of its own. Single
keys can override these under either protocol, so the notes describe the values in force, not the protocol's name.
"""

from __future__ import annotations

from nlora.config.schema import BUILTIN, RELEASED_CHOICES, Config


def protocol_notes(config: Config) -> list[str]:
    """How a run differs from the repaired protocol and, if it is called released, from the released one.

    Empty for a run that follows the repaired protocol in everything.
    """
    notes = [*_training_notes(config), *_scoring_notes(config)]
    if config.protocol == "released":
        notes += _departures(config)
    return notes


def _training_notes(config: Config) -> list[str]:
    notes = []
    if config.train.truncate == "released":
        notes.append(
            f"prompts of more than {config.train.max_source_tokens} tokens lose their end, 'Answer:' included "
            "(train.truncate: released)"
        )
    tasks = [task.name for task in config.tasks if task.adapter is None]
    if config.method.name == "mtl":  # it trains once, with the settings of the last
        tasks = tasks[-1:]
    random = [name for name in tasks if config.train_options(name).batches == "random"]
    if random:
        of_which = "" if random == tasks else f" of {', '.join(random)}"
        notes.append(f"batches{of_which} are drawn at random, not by length (train.batches: random)")
    return notes


def _scoring_notes(config: Config) -> list[str]:
    notes = []
    if config.evaluate.decode == "generate":
        notes.append(
            "answers are generated freely and must match to count, instead of being chosen among the labels "
            "(evaluate.decode: generate)"
        )
    if config.protocol == "repaired":
        return notes
    from_folder = config.data not in (None, BUILTIN) and any(task.train is None for task in config.tasks)
    if from_folder and config.evaluate.split == "test":
        notes += [
            "test examples that the release labels '-' (some of MNLI's) are kept and count as wrong",
            "the test files are also the release's dev files: anything tuned for these tasks was tuned on them",
        ]
    notes.append("the exact match pooled over all test examples is shown next to the mean over tasks")
    return notes


def _departures(config: Config) -> list[str]:
    """Keys with other values than in the released protocol."""
    values = config.model_dump()
    notes = [
        f"not as released: {section}.{key} is {values[section][key]}, the release has {released}"
        for section, choices in RELEASED_CHOICES.items()
        for key, released in choices.items()
        if values[section][key] != released
    ]
    if config.evaluate.split == "validation":
        notes.append(
            "not as released: scored on examples held out from train (evaluate.split: validation), not on test"
        )
    return notes
