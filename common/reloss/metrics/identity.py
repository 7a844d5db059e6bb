"""A hash of what a function computes, to detect that a stored value was computed by other code.

Metric values are cached between runs. A cached value is valid only as long as the metric still computes the same, so
the cache is named after a hash of the function's code and of everything it refers to in its own module.
"""

from __future__ import annotations

import functools
import hashlib
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from reloss.runtime.files import short_hash

MAX_DEPTH = 24
PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), torch.dtype, torch.device, np.generic)


def identity(function: Any) -> str:
    """Return a hash of what `function` computes, the same in every process.

    Covered are the function's name, code, defaults and closure, and the functions, classes and data of its own module
    that it refers to; for an object, its class and attributes. Code of other modules is not covered.
    """
    return short_hash(_describe(function, {}, MAX_DEPTH))


def _describe(value: Any, visited: dict[int, Any], depth: int) -> Any:
    """Return `value` as JSON.

    Args:
        value: any object.
        visited: the functions, classes and objects described so far, by id. It keeps them alive, so ids stay unique.
        depth: levels of nesting to descend; below them, only the type is described.
    """
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, PLAIN):
        return [kind, repr(value)]
    if depth == 0:
        return kind

    def describe(part: Any) -> Any:
        return _describe(part, visited, depth - 1)

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
    if id(value) in visited:
        return [kind, list(visited).index(id(value))]
    visited[id(value)] = value
    if isinstance(value, list | set | dict):
        parts = value.items() if isinstance(value, dict) else value
        return [kind, *(map(describe, parts) if isinstance(value, list) else sorted(map(describe, parts), key=repr))]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        code = (value.__code__, value.__defaults__, value.__kwdefaults__, cells, _module_references(value))
        return [kind, value.__qualname__, *map(describe, code)]
    if isinstance(value, MethodType):
        return [kind, describe(value.__func__), describe(value.__self__)]
    if isinstance(value, functools.partial):
        return [kind, *map(describe, (value.func, value.args, value.keywords))]
    if isinstance(value, type):
        methods = {name: part for name, part in vars(value).items() if isinstance(part, FunctionType)}
        return [kind, value.__module__, value.__qualname__, describe(methods)]
    name = getattr(value, "__qualname__", "")  # for built-in functions
    return [kind, name, describe(type(value)), describe(getattr(value, "__dict__", None))]


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _module_references(function: FunctionType) -> dict[str, Any]:
    """Return the functions, classes and data of the function's own module that its code names."""
    references = {}
    for name in sorted(_names(function.__code__)):
        value = function.__globals__.get(name)
        same_module = isinstance(value, FunctionType | type) and value.__module__ == function.__module__
        if same_module or isinstance(value, (*PLAIN, tuple, frozenset, list, set, dict, torch.Tensor, np.ndarray)):
            references[name] = value
    return references


def _names(code: CodeType) -> set[str]:
    """Return the names that the code uses, including nested functions."""
    nested = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*nested)
