"""NAME=VALUE options: read as YAML, checked against a record's fields."""

from dataclasses import dataclass
from typing import Literal

import pytest

from dasnet_lightning.cli.options import parse_options
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.instance_targets import SamplingOptions
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.models.semantic import SemanticOptions
from dasnet_lightning.options import replace_options


def test_values_are_read_as_yaml():
    given = ["a=7", "b=0.5", "c=true", "d=text", "e=[1, 2]", "f=null", "g=x=y", "h="]
    assert parse_options(given, "--option") == {
        **{"a": 7, "b": 0.5, "c": True, "d": "text", "e": [1, 2], "f": None, "g": "x=y", "h": None}
    }
    assert parse_options(["a=1", "a=2"], "--option") == {"a": 2}


@pytest.mark.parametrize("pair", ["alone", "=7", "", "a=[1", "a={b", "a=: :"])
def test_what_cannot_be_read_is_named(pair):
    with pytest.raises(ConfigError, match=r"^--some-option '.*'.*, expected"):
        parse_options([pair], "--some-option")


def test_only_the_given_fields_are_replaced():
    saved = InstanceOptions(score_threshold=0.17, max_detections=9)
    changed = replace_options(saved, parse_options(["foreground_threshold=0.4", "grouping=class"], "-o"), "-o")
    assert changed == InstanceOptions(0.17, max_detections=9, foreground_threshold=0.4, grouping="class")
    assert replace_options(saved, {}, "-o") == saved


def test_numbers_without_a_point_and_numbers_that_yaml_calls_text():
    assert replace_options(SemanticOptions(), parse_options(["box_margin=4"], "-o"), "-o").box_margin == 4
    assert (
        replace_options(SemanticOptions(), parse_options(["score_threshold=1e-3"], "-o"), "-o").score_threshold == 1e-3
    )
    assert replace_options(SamplingOptions(), {"pixels": None}, "-o").pixels is None
    assert replace_options(SamplingOptions(), {"pixels": 7}, "-o").pixels == 7


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            "foreground_treshold=0.4",
            "'foreground_treshold' is unknown, did you mean 'foreground_threshold'? Known:",
        ),
        ("max_classes=3", "'max_classes' is unknown"),
        ("max_detections=many", "max_detections='many': expected a whole number"),
        ("max_detections=1.5", "max_detections=1.5: expected a whole number"),
        ("max_detections=true", "max_detections=True: expected a whole number"),
        ("score_threshold=high", "score_threshold='high': expected a number"),
        ("score_threshold=yes", "score_threshold=True: expected a number"),
        ("score_threshold=", "score_threshold=None: expected a number"),
        ("weight_by_instance_score=1", "weight_by_instance_score=1: expected true or false"),
        ("grouping=both", "grouping='both': expected 'instance' or 'class'"),
        ("regions_at_once=0", "regions_at_once=0 must be at least 1"),
    ],
)
def test_names_and_values_that_do_not_fit_are_refused(pair, message):
    with pytest.raises(ConfigError) as refusal:
        replace_options(InstanceOptions(), parse_options([pair], "--inference-option"), "--inference-option")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_other_kinds_of_fields():
    @dataclass(frozen=True)
    class Record:
        sizes: int | None = None
        name: str = "a"
        kind: Literal[1, 2] = 1

    assert replace_options(Record(), {"sizes": 3, "name": "b", "kind": 2}, "-o") == Record(3, "b", 2)
    for changes in ({"sizes": "x"}, {"name": 3}, {"kind": 3}, {"kind": True}):
        with pytest.raises(ConfigError):
            replace_options(Record(), changes, "-o")
