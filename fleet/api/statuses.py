"""The status code and the word of each error. The only table of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fleet import errors
from wire import errors as wire_errors

STATUS: Final[Mapping[type[Exception], tuple[int, str]]] = {
    errors.Malformed: (400, "malformed"),
    errors.TooLarge: (413, "too-large"),
    errors.TooMany: (429, "too-many"),
    errors.OverBudget: (429, "over-budget"),
    errors.Blocked: (400, "content-filter"),
    errors.Untrusted: (422, "untrusted"),
    errors.Unauthorized: (401, "unauthorized"),
    errors.Forbidden: (403, "forbidden"),
    errors.Incompatible: (422, "incompatible"),
    errors.NotFound: (404, "not-found"),
    errors.Conflict: (409, "conflict"),
    errors.Unavailable: (503, "unavailable"),
    errors.StorageFull: (507, "unavailable"),
    errors.UpstreamDown: (502, "unavailable"),
    errors.UpstreamSlow: (504, "unavailable"),
    errors.UpstreamShut: (503, "unavailable"),
    errors.NotJudged: (503, "unavailable"),
    wire_errors.Malformed: (400, "malformed"),
    wire_errors.Untrusted: (422, "untrusted"),
    wire_errors.Incompatible: (422, "incompatible"),
}


def status_of(error: Exception) -> tuple[int, str]:
    """Those of the nearest kind of an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
