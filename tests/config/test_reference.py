"""The reference of the configuration: written from the models, whole, and with a meaning for each key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from supervisor.config.model import Root
from supervisor.config.reference import configuration_page

PAGE = Path(__file__).parent.parent.parent / "docs" / "configuration.md"
ROW = re.compile(r"^\| `(\w+)` \| (.+) \| (.+) \| (.*) \|$", re.MULTILINE)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a field may hold, however deep in lists and choices."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _all_models() -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    waiting: list[type[BaseModel]] = [Root]
    while waiting:
        model = waiting.pop()
        if model not in found:
            found.append(model)
            waiting += [inner for field in model.model_fields.values() for inner in _models(field.annotation)]
    return found


def _tables() -> list[list[tuple[str, str, str, str]]]:
    return [ROW.findall(section) for section in re.split(r"^##", configuration_page(), flags=re.MULTILINE)]


def test_given_page_of_the_configuration_it_is_the_one_written_from_the_models() -> None:
    """docs/configuration.md is up to date; the head of reference.py says how to write it anew."""
    assert PAGE.read_text() == configuration_page()


@pytest.mark.parametrize("model", _all_models(), ids=lambda model: model.__name__)
def test_given_model_a_table_has_its_keys_in_order(model: type[BaseModel]) -> None:
    """Also for models inside lists and inside each other: the models are walked another way than the page."""
    keys = [field.alias or name for name, field in model.model_fields.items()]
    assert keys in [[row[0] for row in table] for table in _tables()]


def test_given_every_key_it_says_what_may_be_written_and_what_that_means() -> None:
    """No cell is empty, and nothing is shown as anything goes."""
    for table in _tables():
        for key, value, default, meaning in table:
            assert value.strip() not in ("", "anything"), key
            assert default.strip(), key
            assert len(meaning.strip()) > 5, key


def test_given_page_links_lead_to_its_headings() -> None:
    """A mapping inside a mapping is one click away."""
    headings = re.findall(r"^#+ `(.+)`$", configuration_page(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9_-]", "", heading.lower()) for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", configuration_page())) <= anchors
