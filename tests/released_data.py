"""A tiny benchmark in the released layout: all fifteen data sets with their types and label words."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

LABELS = {
    "TC/dbpedia": ("Company", "Educational Institution", "Artist", "Athlete", "Office Holder",
                   "Mean of Transportation", "Building", "Natural Place", "Village", "Animal", "Plant", "Album",
                   "Film", "Written Work"),
    "TC/yahoo": ("Society & Culture", "Science & Mathematics", "Health", "Education & Reference",
                 "Computers & Internet", "Sports", "Business & Finance", "Entertainment & Music",
                 "Family & Relationships", "Politics & Government"),
    "TC/agnews": ("World", "Sports", "Business", "Science or Technology"),
    "SC/yelp": ("very negative", "negative", "neutral", "positive", "very positive"),
    "SC/amazon": ("very negative", "negative", "neutral", "positive", "very positive"),
    "SC/IMDB": ("Good", "Bad"),
    "SC/SST-2": ("Good", "Bad"),
    "NLI/MNLI": ("neutral", "entailment", "contradiction"),
    "NLI/CB": ("entailment", "contradiction", "neutral"),
    "NLI/RTE": ("contradiction", "entailment"),
    "QQP/QQP": ("False", "True"),
    "BoolQA/BoolQA": ("True", "False"),
    "MultiRC/MultiRC": ("False", "True"),
    "COPA/COPA": ("A", "B"),
    "WiC/WiC": ("True", "False"),
}  # fmt: skip


def write_benchmark(folder: Path, *, leave_out: Collection[str] = (), train: int = 2, test: int = 2) -> Path:
    """Writes the data sets but those named in `leave_out` (agnews); returns the folder.

    Every third test example of MNLI, the first one included, has the label "-", as some of the released have.
    """
    for place, labels in LABELS.items():
        if place.split("/")[1] in leave_out:
            continue
        (folder / place).mkdir(parents=True)
        splits = {
            name: [
                {"sentence": f"Text: the {name} fox number {i}", "label": labels[i % len(labels)]}
                for i in range(count)
            ]
            for name, count in (("train", train), ("test", test))
        }
        for row in splits["test"][::3] if place == "NLI/MNLI" else ():
            row["label"] = "-"
        files: dict[str, object] = {**splits, "dev": splits["test"], "labels": labels}
        for name, content in files.items():
            (folder / place / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
