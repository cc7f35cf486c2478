"""Configurations: typed overrides by path, errors that name the nearest key, round trips, comments as help."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from polydream.core.config import (
    ABSENT,
    ConfigError,
    comments,
    convert,
    describe,
    difference,
    from_dict,
    leaves,
    nearest,
    override,
    to_dict,
)

ROOT = Path(__file__).parent.parent
Colour = Literal["red", "green"]


@dataclass(frozen=True, kw_only=True)
class Inner:
    """The inside."""

    width: int = 4  # how wide
    rate: float = 0.5
    # Above, because the line
    # is full.
    colour: Colour = "red"


@dataclass(frozen=True, kw_only=True)
class Special(Inner):
    """An inside with more."""

    extra: int | None = None  # only here


@dataclass(frozen=True, kw_only=True)
class Outer:
    """The outside."""

    name: str = "x"
    flag: bool = False
    sizes: tuple[int, ...] = (1, 2)  # of the stages
    words: tuple[str, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    level: Literal[1, 2, "high"] = 1
    limit: float | None = None
    label: str | None = None
    inner: Inner = field(default_factory=lambda: Inner(width=9))
    other: Inner = field(default_factory=Inner)


@dataclass(frozen=True, kw_only=True)
class Needy:
    must: int
    may: int = 1


GOOD: list[tuple[str, Any, Any]] = [
    ("name", "hello", "hello"),
    ("name", "12", "12"),
    ("flag", "true", True),
    ("flag", "False", False),
    ("flag", True, True),
    ("inner.width", "512", 512),
    ("inner.width", "1e5", 100_000),
    ("inner.width", "1_000", 1000),
    ("inner.width", "-3", -3),
    ("inner.width", 3.0, 3),
    ("inner.rate", "1e-3", 0.001),
    ("inner.rate", "2", 2.0),
    ("inner.rate", 2, 2.0),
    ("inner.rate", "inf", float("inf")),
    ("inner.colour", "green", "green"),
    ("sizes", "3,4,5", (3, 4, 5)),
    ("sizes", "(3, 1e1,)", (3, 10)),
    ("sizes", "[7]", (7,)),
    ("sizes", "", ()),
    ("sizes", [2, 3], (2, 3)),
    ("words", "a, b", ("a", "b")),
    ("pair", "3,0.25", (3, 0.25)),
    ("level", "2", 2),
    ("level", "high", "high"),
    ("limit", "none", None),
    ("limit", "0.5", 0.5),
    ("limit", None, None),
    ("label", "None", None),
    ("label", "nothing", "nothing"),
]


@pytest.mark.parametrize(("path", "text", "value"), GOOD)
def test_override_reads_text_by_annotation(path: str, text: Any, value: Any) -> None:
    changed = override(Outer(), path, text)
    found = leaves(changed)[path]
    assert found == value
    assert type(found) is type(value)
    assert leaves(changed) | {path: leaves(Outer())[path]} == leaves(Outer())  # nothing else moved


BAD: list[tuple[str, Any, str]] = [
    ("flag", "yes", "flag wants true or false, got 'yes'"),
    ("flag", 1, "flag wants true or false, got 1"),
    ("inner.width", "1.5", "inner.width wants an integer, got '1.5'"),
    ("inner.width", "four", "inner.width wants an integer, got 'four'"),
    ("inner.width", True, "inner.width wants an integer, got True"),
    ("inner.width", "1e999999999", "inner.width wants an integer, got '1e999999999'"),
    ("inner.width", "inf", "inner.width wants an integer, got 'inf'"),
    ("inner.rate", "nan", "inner.rate wants a number, got 'nan'"),
    ("inner.rate", "", "inner.rate wants a number, got ''"),
    ("inner.rate", False, "inner.rate wants a number, got False"),
    ("inner.colour", "gren", "inner.colour wants one of red, green, got 'gren'; did you mean 'green'?"),
    ("name", 3, "name wants text, got 3"),
    ("sizes", "1,x", "sizes wants an integer, got 'x'"),
    ("sizes", 3, "sizes wants integers separated by commas, got 3"),
    ("pair", "1,2,3", "pair wants 2 values separated by commas (an integer, a number), got 3: ['1', '2', '3']"),
    ("limit", "low", "limit wants a number or none, got 'low'"),
    ("inner", "3", "inner is a group of options, set one of them: inner.width, inner.rate, inner.colour"),
    ("inner.widht", "3", "no option 'inner.widht'; did you mean 'inner.width'?"),
    ("iner.rate", "3", "no option 'iner.rate'; did you mean 'inner.rate'?"),
    ("width", "3", "no option 'width'; did you mean 'inner.width' or 'other.width'?"),
    ("flag.x", "3", "no option 'flag.x'; did you mean 'flag'?"),
    ("inner..rate", "3", "no option 'inner..rate'; did you mean 'inner.rate'?"),
]


@pytest.mark.parametrize(("path", "text", "message"), BAD)
def test_override_refuses_with_one_line(path: str, text: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(Outer(), path, text)
    assert str(caught.value) == message


def test_every_misspelt_leaf_is_led_back_to_itself() -> None:
    for path in leaves(Outer()):
        wrong = path[:-1] + "qz"
        assert nearest(wrong, leaves(Outer()))[0] == path


def test_leaves_are_in_order_of_declaration() -> None:
    assert list(leaves(Outer()))[-6:] == ["inner.width", "inner.rate", "inner.colour", "other.width", "other.rate", "other.colour"]


def test_override_follows_the_value_not_the_annotation() -> None:
    cfg = Outer(inner=Special())
    assert override(cfg, "inner.extra", "5").inner == Special(extra=5)
    with pytest.raises(ConfigError, match="no option 'inner.extra'"):
        override(Outer(), "inner.extra", "5")


@dataclass(frozen=True, kw_only=True)
class Sum:
    """A group that looks at itself, as a researcher's own may."""

    left: int = 1
    right: int = 1

    def __post_init__(self) -> None:
        if self.left + self.right == 0:
            raise ValueError("left and right cancel")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Has one inside."""

    sum: Sum = field(default_factory=Sum)


def test_what_a_group_finds_wrong_with_itself_is_one_line_and_names_the_option() -> None:
    for refused in (
        lambda: override(Holder(), "sum.left", "-1"),
        lambda: override(Sum(), "left", "-1"),
        lambda: from_dict(Holder, {"sum": {"left": -1}}),
        lambda: from_dict(Sum, {"left": -1}),
    ):
        with pytest.raises(ConfigError, match=r"^(sum\.left|left|sum|Sum): left and right cancel$"):
            refused()


def test_difference() -> None:
    a, b = Outer(), Outer(inner=Special(width=9, rate=1.0), flag=True)
    assert difference(a, a) == {}
    assert difference(a, b) == {"flag": (False, True), "inner.rate": (0.5, 1.0), "inner.extra": (ABSENT, None)}
    assert difference(Outer(level=1), replace(Outer(), level=True)) == {"level": (1, True)}  # type: ignore[arg-type]


def test_round_trip_through_yaml_and_json() -> None:
    cfg = Outer(sizes=(), words=("a", "1"), inner=Special(rate=1e-5, extra=3), limit=3e-20, name="no: \n 1e5")
    groups = {"inner": Special}
    for text in (yaml.safe_dump(to_dict(cfg)), json.dumps(to_dict(cfg))):
        assert from_dict(Outer, yaml.safe_load(text), groups) == cfg
    assert yaml.safe_load(yaml.safe_dump(to_dict(cfg)))["sizes"] == []


def test_what_a_mapping_leaves_out_keeps_its_default_even_inside_a_group() -> None:
    assert from_dict(Outer, {}) == Outer()
    assert from_dict(Outer, {"inner": {"rate": 1}}).inner == Inner(width=9, rate=1.0)  # 9 is Outer's, not Inner's default
    assert from_dict(Outer, {"other": {"rate": "1e3"}}).other.rate == 1000.0  # YAML 1.1 reads 1e3 as text


def test_from_dict_refuses() -> None:
    for data, message in [
        ({"inner": {"widht": 3}}, "no option 'inner.widht'; did you mean 'inner.width'?"),
        ({"inner": {"extra": 3}}, "no option 'inner.extra'"),
        ({"inner": 3}, "inner wants a group of options, got 3"),
        ({"sizes": ["a"]}, "sizes wants an integer, got 'a'"),
        ({"flag": None}, "flag wants true or false, got None"),
        ([], "Outer wants a group of options"),
    ]:
        with pytest.raises(ConfigError) as caught:
            from_dict(Outer, data)  # type: ignore[arg-type]
        assert message in str(caught.value)
    with pytest.raises(ConfigError, match="must is missing and has no default"):
        from_dict(Needy, {"may": 2})
    assert from_dict(Needy, {"must": 2}) == Needy(must=2)


def test_describe_takes_comments_from_the_source() -> None:
    found = {o.path: o for o in describe(Outer(inner=Special(width=7)))}
    assert found["inner.width"] == ("inner.width", "an integer", 7, "how wide", "An inside with more.")
    assert found["inner.extra"].comment == "only here"
    assert found["other.colour"].comment == "Above, because the line is full."
    assert found["other.colour"].wants == "one of red, green"
    assert found["sizes"].comment == "of the stages"
    assert found["name"].comment == ""
    assert [o.path for o in describe(Outer)] == list(leaves(Outer()))
    assert {o.path: o.default for o in describe(Outer, {"other": Special})}["other.extra"] is None


def test_a_class_without_source_has_no_comments() -> None:
    made = make_dataclass("Made", [("a", int, 1)], frozen=True)
    assert comments(made) == {}
    assert [o[:4] for o in describe(made)] == [("a", "an integer", 1, "")]


def test_types_that_options_cannot_have_are_named() -> None:
    with pytest.raises(ConfigError, match="a type that options cannot have"):
        convert(dict[str, int], "a", "x")


def test_config_needs_the_standard_library_only() -> None:
    code = "import sys; import polydream.core.config; print(sorted({'torch', 'numpy', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
