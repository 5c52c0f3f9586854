"""Results of the controller's pure functions, computed once for all runs of a process.

Most of a run's time goes into parsing the same manifests, annotations and quantities: once for each controller, version
and reconcile. The functions below depend on their arguments only, and nothing changes what they return.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from unittest import mock

from cryptography.hazmat.primitives import serialization

from cdi.api import decode, validation
from cdi.api.kinds import Object
from cdi.api.quantity import Quantity
from cdi.controller import informers
from cdi.controller.lister import _NO_WARNING, ClusterLister
from cdi.kube import pki

MAX_RESULTS: Final = 20_000
"""Results of one function, at most."""


@contextlib.contextmanager
def remembered() -> Iterator[None]:
    """Let the controller's pure functions remember their results."""
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in _places():
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


@functools.cache
def _places() -> tuple[tuple[Any, str, Any], ...]:
    """Return what is replaced, as (owner, name, replacement); a function has a name in each module that imports it."""
    functions: dict[Callable[..., Any], Callable[..., Any]] = {
        decode.decode: functools.lru_cache(MAX_RESULTS)(decode.decode),
        validation.parse: _parse,
        # It copies an object to save memory; what it gets here was parsed for it.
        informers._compact: _same,
    }
    found: list[tuple[Any, str, Any]] = [
        (module, name, functions[value])
        for module_name, module in sorted(sys.modules.items())
        if module_name.startswith("cdi.")
        for name, value in vars(module).items()
        if callable(value) and _is_one_of(value, functions)
    ]
    quantity = functools.lru_cache(MAX_RESULTS, typed=True)(Quantity.parse)
    return (
        *found,
        (Quantity, "parse", staticmethod(quantity)),
        (ClusterLister, "_claim", _claim),
        (serialization, "load_pem_private_key", functools.lru_cache(256)(serialization.load_pem_private_key)),
        (pki.Pair, "parsed", functools.lru_cache(256)(pki.Pair.parsed)),
    )


def _is_one_of(value: Any, functions: Mapping[Callable[..., Any], Any]) -> bool:
    return any(value is one for one in functions)


def _same(body: Object) -> Object:
    return body


_right_claim = ClusterLister._claim
_claims: dict[tuple[int, str, str], tuple[Object, Any]] = {}
"""The PVCs of cached objects, with the object, whose address is a key only while it exists."""


def _claim(lister: ClusterLister, body: Object) -> Any:
    warning = lister._warnings.get(body["metadata"]["uid"], _NO_WARNING)
    key = (id(body), warning.message, warning.reason)
    known = _claims.get(key)
    if known is None:
        if len(_claims) >= MAX_RESULTS:
            _claims.clear()
        known = _claims[key] = (body, _right_claim(lister, body))
    return known[1]


def _parse(document: Object) -> Any:
    return _parsed(json.dumps(document))


_right_parse = validation.parse


@functools.lru_cache(MAX_RESULTS)
def _parsed(text: str) -> Any:
    return _right_parse(json.loads(text))
