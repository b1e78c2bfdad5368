"""The tables of labels that ship, and models that refer to them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tttunet.errors import ModelError
from tttunet.models.card import read_config
from tttunet.models.config import Label
from tttunet.models.labels import LabelTable, labels_of, load_table, table_names, with_table
from tttunet.models.library import list_models

#: FLARE 2022 and AMOS 2022, as published.
FLARE22 = (
    "liver, right kidney, spleen, pancreas, aorta, inferior vena cava, right adrenal gland, "
    "left adrenal gland, gallbladder, esophagus, stomach, duodenum, left kidney"
)
AMOS = (
    "spleen, right kidney, left kidney, gallbladder, esophagus, liver, stomach, aorta, "
    "inferior vena cava, pancreas, right adrenal gland, left adrenal gland, duodenum"
)


@pytest.mark.parametrize("name", table_names())
def test_every_table_is_valid(name: str):
    table = load_table(name)  # numbers, colours and names differ
    assert table.title
    assert [entry.value for entry in table.labels] == list(range(1, len(table.labels) + 1))
    codes = [str(entry.code) for entry in table.labels if entry.code is not None]
    assert len(set(codes)) == len(codes)
    labels, found = with_table(labels_of(name))
    assert (labels, found) == (labels_of(name), name)


def test_the_tables_that_are_promised():
    sizes = {name: len(load_table(name).labels) for name in table_names()}
    assert sizes == {
        "abdomen-amos": 13,
        "abdomen-flare22": 13,
        "cells": 1,
        "heart": 3,
        "hippocampus": 2,
        "instruments-endovis17": 7,
        "kidneys": 1,
        "liver": 1,
        "polyps": 1,
    }
    for name, order in (("abdomen-flare22", FLARE22), ("abdomen-amos", AMOS)):
        assert [label.name for label in labels_of(name)] == order.split(", ")
    by_name = [{label.name: label.color for label in labels_of(n)} for n in table_names()[:2]]
    assert by_name[0] == by_name[1]


def test_names_in_other_words_get_colours_and_codes():
    labels = [Label(value=4, name="Kidney_Right"), Label(value=9, name="IVC", color=(1, 2, 3))]
    (kidney, cava), table = with_table(labels)
    assert table is None
    assert (kidney.value, kidney.name, kidney.color) == (4, "Kidney_Right", (185, 102, 83))
    assert kidney.code == "SCT^64033007^Kidney~SCT^24028007^Right"
    assert (cava.color, cava.code) == ((1, 2, 3), "SCT^64131007^Inferior vena cava")


def test_unknown_names_are_left_alone():
    labels = (Label(value=1, name="liver"), Label(value=2, name="organ 2"))
    assert with_table(labels) == (labels, None)
    assert with_table(()) == ((), None)


def test_mistakes_are_noticed():
    with pytest.raises(ModelError, match=r"no table of labels 'x'.*"):
        load_table("x")
    entry = {"value": 1, "name": "a", "color": (1, 2, 3)}
    for other, what in (
        ({"value": 1, "name": "b", "color": (0, 0, 0)}, "numbers"),
        ({"value": 2, "name": "b", "color": (1, 2, 3)}, "colours"),
        ({"value": 2, "name": "b", "also": ["A"], "color": (0, 0, 0)}, "names"),
        ({"value": 2, "name": "b", "color": (0, 0, 256)}, "less than or equal to 255"),
    ):
        with pytest.raises(ValueError, match=what):
            LabelTable(title="t", labels=[entry, other])


@pytest.mark.parametrize(
    "code", ["10200004", "SCT^liver^Liver", "SCT^10200004^Liver~right", "SCT:1"]
)
def test_a_code_that_no_program_understands_is_refused(code: str):
    assert Label(value=1, name="liver", code="SCT^10200004^Liver").code
    with pytest.raises(ValidationError, match="code"):
        Label(value=1, name="liver", code=code)


def test_shipped_models_have_the_labels_of_their_table():
    shipped = [entry.path for entry in list_models() if entry.origin == "shipped"]
    configs = [config for path in shipped if (config := read_config(path)).label_table]
    assert configs
    for config in configs:
        assert config.labels == labels_of(config.label_table)
