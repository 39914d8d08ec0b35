"""The configuration page says what the program says."""

from __future__ import annotations

from pathlib import Path

from nlora.cli.config_docs import configuration_keys, markdown
from nlora.config.schema import Config
from nlora.data.fields import LABEL_FIELDS, TEXT_FIELDS
from nlora.data.readers import FORMATS, READERS


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == markdown(), (
        "run: python -m nlora.cli.config_docs > docs/configuration.md"
    )


def test_every_key_says_what_it_means() -> None:
    keys = {key.path: key for key in configuration_keys()}
    assert all(key.help for key in keys.values())
    assert {path.split(".")[0] for path in keys} == set(Config.model_fields)
    assert keys["train.learning_rate"].default == "0.001"
    assert keys["tasks.N.name"].default == "required"


def test_the_page_on_data_names_every_format_and_field() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in (*FORMATS, ".txt", *TEXT_FIELDS, *LABEL_FIELDS))
    assert f"--format {'|'.join(READERS)}" in page
