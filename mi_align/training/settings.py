"""Frozen dataclasses from YAML with dotted overrides: every key known, every value of its field's type.

    load(Run, "run.yaml", ["optimiser.rate=1e-4", "data.train=pairs.jsonl"])

An unknown key is an error that names the nearest known one; so is a value of another type, with the key's whole path.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mi_align import checks

__all__ = ["from_mapping", "load", "to_mapping"]

T = TypeVar("T")


def load(kind: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """The settings in a YAML file, changed by `key.of.part=value` overrides, whose values are YAML as well.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no YAML mapping, a key is unknown, or a value does not fit; the message has the key's path.
    """
    values: Any = {}
    if path is not None:
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {str(file)!r}. A YAML file with the run's settings was wanted.")
        values = _parsed(file.read_text(encoding="utf-8"), file.name)
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise ValueError(f"{file.name} holds {_named(values)}, but a mapping of settings was wanted.")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ValueError(f"{override!r} is no override: `key.of.part=value` was wanted.")
        _put(values, key, _parsed(text, override))
    return from_mapping(kind, values)


def _parsed(text: str, source: str) -> Any:
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is no YAML: {' '.join(str(error).split())}") from None


def _loader() -> type:
    """YAML's safe loader as of YAML 1.2: 1e-4 is a number (1.1 wants 1.0e-4), and on, off, yes and no are words."""
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":bool")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true$|false$", re.IGNORECASE), list("tTfF"))
    number = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    return Loader


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for depth, name in enumerate(parents, start=1):
        inner = values.get(name)
        if inner is None:
            inner = values[name] = {}
        if not isinstance(inner, dict):
            raise ValueError(f"`{key}` cannot be set: `{'.'.join(parents[:depth])}` is {_named(inner)}.")
        values = inner
    values[last] = value


def from_mapping(kind: type[T], values: Mapping[str, Any], at: str = "") -> T:
    """An instance of a dataclass from nested mappings; defaults stand in for what is left out."""
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise checks.unknown_name(f"setting in `{at}`" if at else "setting", str(name), fields)
    here = {name: _converted(hints[name], value, f"{at}.{name}" if at else name) for name, value in values.items()}
    missing = [
        name
        for name, field in fields.items()
        if name not in here and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"the setting `{f'{at}.' if at else ''}{missing[0]}` is missing.")
    try:
        return kind(**here)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{at or 'the settings'}: {error}") from None


def to_mapping(settings: Any) -> Any:
    """The settings as nested dictionaries and lists, with what is at its default."""
    if dataclasses.is_dataclass(settings):
        return {f.name: to_mapping(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
    if isinstance(settings, Mapping):
        return {key: to_mapping(value) for key, value in settings.items()}
    return [to_mapping(item) for item in settings] if isinstance(settings, tuple | list) else settings


def _converted(hint: Any, value: Any, at: str) -> Any:
    """`value` as the type that a field has, or an error."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _first_that_fits([a for a in arguments if a is not type(None)], value, at)
    if origin is typing.Literal:
        if value not in arguments:
            raise checks.unknown_name(f"value of `{at}`", str(value), map(str, arguments))
        return value
    if dataclasses.is_dataclass(hint):
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise ValueError(f"`{at}` is {_named(value)}, but a mapping of settings was wanted.")
        return from_mapping(typing.cast(type, hint), value, at)
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_converted(arguments[0], item, f"{at}[{i}]") for i, item in enumerate(items))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"`{at}` is {_named(value)}, but a mapping was wanted.")
        return {str(k): _converted(arguments[1], v, f"{at}.{k}") for k, v in value.items()}
    return _scalar(hint, value, at)


def _first_that_fits(hints: Sequence[Any], value: Any, at: str) -> Any:
    for hint in hints[:-1]:
        try:
            return _converted(hint, value, at)
        except ValueError:
            continue
    return _converted(hints[-1], value, at)


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _scalar(hint: Any, value: Any, at: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"`{at}` is {_named(value)}, but {_WORDS.get(hint, hint.__name__)} was wanted.")
    return value


def _named(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"
