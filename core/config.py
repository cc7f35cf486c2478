"""Configurations as trees of frozen dataclasses: read by dotted path, changed one typed leaf at a time, compared, explained.

A leaf is anything that is not a dataclass; its path joins field names by dots (`agent.rssm.deter`). Types come from the
annotations: bool, int, float, str, Literal, `X | None`, tuple[X, ...] and tuple[X, Y].
"""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from decimal import Decimal, InvalidOperation
from difflib import SequenceMatcher
from functools import cache, partial
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")

ABSENT = "(absent)"
"""What `difference` gives for a leaf that only the other configuration has."""


class ConfigError(ValueError):
    """A key or a value that a configuration cannot have. The message is one line and names the key."""


class Failure(RuntimeError):
    """Something went wrong that one line explains, without a traceback: a full disk, an environment that fails for good."""


def override(cfg: T, path: str, value: Any) -> T:
    """A copy of `cfg` with the leaf at `path` changed.

    value: text as typed by a person ("512", "1e5", "true", "2,3,4", "none"), or a plain value that already fits. Text is
    read by the leaf's annotation. Raises ConfigError for an unknown path, naming the nearest, and for a value that does not fit.
    """
    return _override(cfg, path.split("."), value, path, cfg)


def _override(cfg: Any, parts: list[str], value: Any, path: str, root: Any) -> Any:
    head, rest = parts[0], parts[1:]
    if not _is_group(cfg) or head not in {f.name for f in fields(cfg)}:
        raise unknown(path, leaves(root))
    old = getattr(cfg, head)
    if rest:
        return _made(partial(replace, cfg), {head: _override(old, rest, value, path, root)}, path)
    if _is_group(old):
        inside = [f"{path}.{f.name}" for f in fields(old)]
        raise ConfigError(f"{path} is a group of options, set one of them: {', '.join(inside)}")
    cls: Any = type(cfg)
    return _made(partial(replace, cfg), {head: convert(hints(cls)[head], value, path)}, path)


def _made(how: Callable[..., Any], values: Mapping[str, Any], path: str) -> Any:
    """A group with these values. A ValueError of its own `__post_init__` becomes a ConfigError that names where it was set."""
    try:
        return how(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def leaves(cfg: Any) -> dict[str, Any]:
    """Every leaf of a configuration by path, in the order of the fields."""
    found: dict[str, Any] = {}
    for f in fields(cfg):
        value = getattr(cfg, f.name)
        if _is_group(value):
            found |= {f"{f.name}.{path}": leaf for path, leaf in leaves(value).items()}
        else:
            found[f.name] = value
    return found


def difference(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Leaves in which two configurations differ: path -> (value in a, value in b). `ABSENT` where one has no such leaf."""
    left, right = leaves(a), leaves(b)
    pairs = {path: (left.get(path, ABSENT), right.get(path, ABSENT)) for path in left | right}
    return {path: (x, y) for path, (x, y) in pairs.items() if x != y or type(x) is not type(y)}


def to_dict(cfg: Any) -> dict[str, Any]:
    """Nested dict of plain values (tuples become lists), fit for YAML and JSON. `from_dict` is its inverse."""
    return {f.name: _plain(getattr(cfg, f.name)) for f in fields(cfg)}


def _plain(value: Any) -> Any:
    if _is_group(value):
        return to_dict(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def from_dict(cls: type[T], data: Mapping[str, Any], groups: Mapping[str, type] | None = None) -> T:
    """Build a configuration from a nested mapping. What the mapping leaves out keeps its default.

    groups: classes of groups that are more special than the annotation says, by path: `{"agent": MyConfig}`.
    Raises ConfigError for keys that the class does not have, for values that do not fit and for missing required keys.
    """
    return _from_dict(cls, None, data, dict(groups or {}), "", cls)


def _from_dict(cls: Any, base: Any, data: Mapping[str, Any], groups: dict[str, type], prefix: str, root: Any) -> Any:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{prefix.rstrip('.') or cls.__name__} wants a group of options, got {data!r}")
    names = {f.name for f in fields(cls)}
    for key in data:
        if key not in names:
            raise unknown(f"{prefix}{key}", [k.path for k in walk(root, groups)])
    values = {}
    for f in fields(cls):
        path = f"{prefix}{f.name}"
        default = getattr(base, f.name) if type(base) is cls else _default(f)
        kind = groups.get(path) or _group(hints(cls)[f.name], default)
        if kind is not None:
            values[f.name] = _from_dict(kind, default, data.get(f.name, {}), groups, f"{path}.", root)
        elif f.name in data:
            values[f.name] = convert(hints(cls)[f.name], data[f.name], path)
        elif default is not MISSING:
            values[f.name] = default
        else:
            raise ConfigError(f"{path} is missing and has no default")
    return _made(cls, values, prefix.rstrip(".") or cls.__name__)


class Leaf(typing.NamedTuple):
    """Where a leaf is declared: dotted path, declaring dataclass, field name, annotation, default (MISSING when required)."""

    path: str
    owner: type
    name: str
    kind: Any
    default: Any


def walk(config: Any, groups: Mapping[str, type] | None = None, prefix: str = "") -> Iterable[Leaf]:
    """Declarations of every leaf of a configuration, or of a configuration class. groups as in `from_dict`."""
    cls = config if isinstance(config, type) else type(config)
    for f in fields(cls):
        path = f"{prefix}{f.name}"
        value = _default(f) if config is cls else getattr(config, f.name)
        declared = (groups or {}).get(path)
        kind = declared or _group(hints(cls)[f.name], value)
        if kind is None:
            yield Leaf(path, cls, f.name, hints(cls)[f.name], value)
        else:
            yield from walk(value if type(value) is kind else kind, groups, f"{path}.")


class Option(typing.NamedTuple):
    """A leaf explained: dotted path, what it wants in words, default, the comment beside its declaration, what its group is."""

    path: str
    wants: str
    default: Any
    comment: str
    about: str


def describe(config: Any, groups: Mapping[str, type] | None = None) -> list[Option]:
    """Every leaf of a configuration (or configuration class) with the comment that stands beside it in the source.

    Comments are empty where the source is not at hand. groups as in `from_dict`.
    """
    found = []
    for leaf in walk(config, groups):
        owner = next(c for c in leaf.owner.__mro__ if leaf.name in c.__dict__.get("__annotations__", {}))
        doc = (leaf.owner.__doc__ or "").strip().partition("\n")[0]
        about = "" if doc.startswith(f"{leaf.owner.__name__}(") else doc  # dataclass writes its signature where there is no docstring
        found.append(Option(leaf.path, wanted(leaf.kind), leaf.default, comments(owner).get(leaf.name, ""), about))
    return found


@cache
def comments(cls: type) -> dict[str, str]:
    """Comments of the fields that a class declares itself: those on a field's own lines, else the lines right above it."""
    try:
        source = inspect.cleandoc("\n" + inspect.getsource(cls))
    except (OSError, TypeError):
        return {}  # typed into a console, or shipped without source
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    marks = {t.start[0]: (t.string.lstrip("# ").rstrip(), t.line.lstrip().startswith("#")) for t in tokens if t.type == tokenize.COMMENT}
    (body,) = [node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    found = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            beside = [marks[n][0] for n in range(node.lineno, (node.end_lineno or node.lineno) + 1) if n in marks]
            above = node.lineno
            while marks.get(above - 1, ("", False))[1]:
                above -= 1
            found[node.target.id] = " ".join(beside or [marks[n][0] for n in range(above, node.lineno)])
    return found


def _default(f: Any) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default


def _group(kind: Any, value: Any) -> Any:
    """The dataclass of a field that holds one, else None. The value's own class wins: variants extend the declared one."""
    if _is_group(value):
        return type(value)
    return kind if isinstance(kind, type) and is_dataclass(kind) else None


def _is_group(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


@cache
def hints(cls: type) -> dict[str, Any]:
    """Resolved annotations of a dataclass by field name, inherited ones included."""
    return typing.get_type_hints(cls)


# ---------------------------------------------------------------------------------------------------- keys


def unknown(path: str, known: Iterable[str]) -> ConfigError:
    """The error for a path that does not exist, with the nearest that does."""
    return ConfigError(f"no option {path!r}; did you mean {' or '.join(map(repr, nearest(path, known)))}?")


def nearest(path: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Valid paths nearest to a misspelt one: those that end in it (at most `count`), else the single most similar.

    Similarity is that of the whole paths or of their last names, so that `units` typed without its group is found, too.
    """
    paths = list(known)
    ends = [p for p in paths if p.endswith(f".{path}")]
    if ends:
        return sorted(ends, key=lambda p: p.count("."))[:count]

    def similarity(p: str) -> float:
        whole = SequenceMatcher(None, path, p).ratio()
        return max(whole, 0.9 * SequenceMatcher(None, path.rpartition(".")[2], p.rpartition(".")[2]).ratio())

    return [max(paths, key=similarity)] if paths else []


# ---------------------------------------------------------------------------------------------------- values


def convert(kind: Any, value: Any, path: str) -> Any:
    """`value` as the annotation `kind` wants it. Text is parsed, other values are only accepted. Raises ConfigError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, UnionType):
        return _convert_union(arguments, value, path)
    if origin is Literal:
        return _convert_literal(arguments, value, path)
    if origin is tuple:
        return _convert_tuple(kind, arguments, value, path)
    if kind is NoneType and (value is None or isinstance(value, str) and value.lower() in ("none", "null")):
        return None
    reader = _READERS.get(kind)
    found = reader(value) if reader else None
    if found is None:
        raise ConfigError(f"{path} wants {wanted(kind)}, got {value!r}")
    return found


def wanted(kind: Any) -> str:
    """An annotation in plain words: "an integer", "one of pool, stride", "integers separated by commas"."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(wanted(a) for a in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"{_PLURALS.get(arguments[0], str(arguments[0]))} separated by commas"
    if origin is tuple:
        return f"{len(arguments)} values separated by commas ({', '.join(wanted(a) for a in arguments)})"
    return _WORDS.get(kind, f"{kind} (a type that options cannot have)")


def _convert_union(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    for kind in sorted(kinds, key=lambda k: (k is not NoneType, k is str)):  # text fits nearly everything: try it last
        try:
            return convert(kind, value, path)
        except ConfigError:
            continue
    raise ConfigError(f"{path} wants {' or '.join(wanted(k) for k in kinds)}, got {value!r}")


def _convert_literal(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    for choice in choices:
        if value == choice and type(value) is type(choice) or isinstance(value, str) and value == str(choice):
            return choice
    near = nearest(str(value), [str(c) for c in choices])
    raise ConfigError(f"{path} wants one of {', '.join(map(str, choices))}, got {value!r}; did you mean {near[0]!r}?")


def _convert_tuple(kind: Any, kinds: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if isinstance(value, str):
        text = value.strip()
        if text[:1] + text[-1:] in ("()", "[]"):
            text = text[1:-1]
        value = [part.strip() for part in text.rstrip(", ").split(",")] if text.strip(", ") else []
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{path} wants {wanted(kind)}, got {value!r}")
    if kinds[-1] is Ellipsis:
        return tuple(convert(kinds[0], v, path) for v in value)
    if len(value) != len(kinds):
        raise ConfigError(f"{path} wants {wanted(kind)}, got {len(value)}: {value!r}")
    return tuple(convert(k, v, path) for k, v in zip(kinds, value, strict=True))


def _read_bool(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def _read_int(value: Any) -> int | None:
    """Integers, also as 1e5 or 100_000 or 100000.0; not 1.5, not True."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    # The size is looked at first: int() of 1e999999999 would never come back.
    fits = number.is_finite() and number.adjusted() < 30 and number == number.to_integral_value()
    return int(number) if fits else None


def _read_float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if number == number else None  # nan is never meant


def _read_str(value: Any) -> str | None:
    return value if isinstance(value, str) else None


_READERS: dict[Any, Any] = {bool: _read_bool, int: _read_int, float: _read_float, str: _read_str}
_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text", NoneType: "none"}
_PLURALS = {bool: "true or false", int: "integers", float: "numbers", str: "words"}
