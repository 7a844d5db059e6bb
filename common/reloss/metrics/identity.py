"""What a function computes, as a hash of its code: to tell what it computed before from what it would now."""

from __future__ import annotations

import functools
import hashlib
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from reloss.runtime.files import short_hash

DEPTH = 24
PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), torch.dtype, torch.device, np.generic)


def identity(function: Any) -> str:
    """Return a hash of what `function` computes, as far as it can be seen; the same in every process.

    Seen are a function's name, code, defaults and closure, and what it names of its own module: functions, classes and
    data. Of an object, its class and its attributes. What is called in other modules is not seen.
    """
    return short_hash(_describe(function, {}, DEPTH))


def _describe(value: Any, seen: dict[int, Any], depth: int) -> Any:
    """Return `value` as JSON; `seen` are the functions, classes and objects described already, kept alive."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, PLAIN):
        return [kind, repr(value)]
    if depth == 0:
        return kind

    def describe(part: Any) -> Any:
        return _describe(part, seen, depth - 1)

    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return [kind, str(value.dtype), value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    if isinstance(value, tuple):
        return [kind, *map(describe, value)]
    if isinstance(value, frozenset):
        return [kind, *sorted(map(describe, value), key=repr)]
    if isinstance(value, CodeType):
        return [kind, value.co_code.hex(), value.co_names, value.co_varnames, describe(value.co_consts)]
    if isinstance(value, ModuleType):
        return [kind, value.__name__]
    if id(value) in seen:
        return [kind, list(seen).index(id(value))]
    seen[id(value)] = value
    if isinstance(value, list | set | dict):
        parts = value.items() if isinstance(value, dict) else value
        return [kind, *(map(describe, parts) if isinstance(value, list) else sorted(map(describe, parts), key=repr))]
    if isinstance(value, FunctionType):
        inside = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        code = (value.__code__, value.__defaults__, value.__kwdefaults__, inside, _named(value))
        return [kind, value.__qualname__, *map(describe, code)]
    if isinstance(value, MethodType):
        return [kind, describe(value.__func__), describe(value.__self__)]
    if isinstance(value, functools.partial):
        return [kind, *map(describe, (value.func, value.args, value.keywords))]
    if isinstance(value, type):
        methods = {name: part for name, part in vars(value).items() if isinstance(part, FunctionType)}
        return [kind, value.__module__, value.__qualname__, describe(methods)]
    name = getattr(value, "__qualname__", "")  # of a builtin function
    return [kind, name, describe(type(value)), describe(getattr(value, "__dict__", None))]


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _named(function: FunctionType) -> dict[str, Any]:
    """Return the functions, classes and data of the function's own module that its code names."""
    found = {}
    for name in sorted(_names(function.__code__)):
        value = function.__globals__.get(name)
        own = isinstance(value, FunctionType | type) and value.__module__ == function.__module__
        if own or isinstance(value, (*PLAIN, tuple, frozenset, list, set, dict, torch.Tensor, np.ndarray)):
            found[name] = value
    return found


def _names(code: CodeType) -> set[str]:
    """Return the names that the code and the code inside it use."""
    inside = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*inside)
