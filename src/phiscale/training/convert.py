"""Text and JSON values -> the typed fields of a frozen dataclass, with errors that name field and fix."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from phiscale.errors import PhiscaleError, RecipeError

__all__ = ["flatten", "replace", "unflatten"]

T = TypeVar("T")

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_NOTHING = ("none", "null", "")


def replace(base: T, changes: Mapping[str, Any], *, path: str = "") -> T:
    """A copy of the dataclass instance `base` with some fields set, each converted to its type.

    Args:
        base: A dataclass instance; nested dataclasses take a mapping.
        changes: Field name -> value; texts such as ``"0.1"`` or ``"true"`` are converted.
        path: Where `base` sits in the whole, for messages.

    Raises:
        RecipeError: A field is unknown, or its value has the wrong type or is out of range.
    """
    dot = f"{path}." if path else ""
    hints = typing.get_type_hints(type(base))
    values = {}
    for name, value in changes.items():
        if name not in hints:
            raise RecipeError(f"{dot}{name} is not a setting; {_suggest(str(name), hints)}")
        values[name] = _convert(hints[name], value, current=getattr(base, name), path=f"{dot}{name}")
    try:
        return dataclasses.replace(base, **values)  # type: ignore[type-var]
    except PhiscaleError as error:
        raise RecipeError(f"{dot}{error}") from None


def unflatten(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names to nested mappings.

    Examples:
        >>> unflatten({"seed": 1, "augment.policy": "none"})
        {'seed': 1, 'augment': {'policy': 'none'}}
    """
    nested: dict[str, Any] = {}
    for name, value in changes.items():
        head, dot, rest = str(name).partition(".")
        if dot:
            inner = nested.setdefault(head, {})
            if not isinstance(inner, dict):
                raise RecipeError(f"{head} is set as a whole and by {name}; keep one of the two")
            inner[rest] = value
        else:
            nested[head] = value
    return nested


def flatten(value: Any, *, path: str = "") -> dict[str, Any]:
    """Every leaf field of a dataclass instance by its dotted name."""
    leaves: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        item, name = getattr(value, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(item):
            leaves |= flatten(item, path=f"{name}.")
        else:
            leaves[name] = item
    return leaves


def _suggest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"


def _convert(hint: Any, value: Any, *, current: Any, path: str) -> Any:
    """One value to the annotated type of its field."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING):
            return None
        inner = next(arg for arg in args if arg is not types.NoneType)
        return _convert(inner, value, current=current, path=path)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if not isinstance(value, Mapping):
            raise RecipeError(
                f"{path} must be a mapping of settings, such as {path}.NAME=VALUE; got {value!r}"
            )
        return replace(current, value, path=path)
    if origin is typing.Literal:
        return _choice(args, value, path=path)
    if origin is tuple:
        return _tuple(args, value, path=path)
    return _scalar(hint, value, path=path)


def _choice(choices: tuple[Any, ...], value: Any, *, path: str) -> Any:
    for choice in choices:
        if value == choice or str(value).strip().lower() == str(choice).lower():
            return choice
    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(value), names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise RecipeError(f"{path} must be one of {', '.join(names)}; {hint}got {value!r}")


def _tuple(args: tuple[Any, ...], value: Any, *, path: str) -> tuple[Any, ...]:
    items = value.strip("()[] ").split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise RecipeError(f"{path} must be values separated by commas, got {value!r}")
    if len(args) == 2 and args[1] is Ellipsis:
        args = (args[0],) * len(items)
    if len(items) != len(args):
        raise RecipeError(f"{path} must be {len(args)} values separated by commas, got {value!r}")
    return tuple(_scalar(arg, item, path=path) for arg, item in zip(args, items, strict=True))


def _scalar(hint: Any, value: Any, *, path: str) -> Any:
    """A bool, int, float or str."""
    text = value.strip() if isinstance(value, str) else value
    if hint is str and isinstance(text, str):
        return text
    if hint is bool:
        if isinstance(value, bool):
            return value
        if isinstance(text, str) and text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        raise RecipeError(f"{path} must be true or false, got {value!r}")
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(text)
        except (TypeError, ValueError):
            number = math.nan
        if hint is int and math.isfinite(number) and number.is_integer():
            return int(text) if isinstance(text, int) else int(number)
        if hint is float and math.isfinite(number):
            return number
    kind = {int: "a whole number", float: "a number", str: "a text"}.get(hint, str(hint))
    raise RecipeError(f"{path} must be {kind}, got {value!r}")
