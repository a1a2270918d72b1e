"""Sampling with any score model, solver and path; encoding and editing of data; and the likelihood of data.

What encodes and edits is imported when it is first asked for, since a first sample does not need it.
"""

from typing import TYPE_CHECKING, Any

from scoresde.sampling.departure import measure_departure
from scoresde.sampling.likelihood import (
    TRACES,
    Bound,
    Likelihood,
    TraceEstimate,
    importance_weighted,
    log_likelihood,
    variational_bound,
)
from scoresde.sampling.samples import NonFiniteError, Samples, sample
from scoresde.sampling.teleport import Teleported, teleport

if TYPE_CHECKING:
    from scoresde.sampling.editing import (
        Bidirectional,
        Coupled,
        Invertible,
        Tempered,
        combine,
        decode,
        encode,
        interpolate,
        latents,
        sdedit,
        slerp,
    )

__all__ = [
    "TRACES",
    "Bidirectional",
    "Bound",
    "Coupled",
    "Invertible",
    "Likelihood",
    "NonFiniteError",
    "Samples",
    "Teleported",
    "Tempered",
    "TraceEstimate",
    "combine",
    "decode",
    "encode",
    "importance_weighted",
    "interpolate",
    "latents",
    "log_likelihood",
    "measure_departure",
    "sample",
    "sdedit",
    "slerp",
    "teleport",
    "variational_bound",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from scoresde.sampling import editing

        return getattr(editing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
