"""The functions of PromQL: what they take and what they return.

The table is Prometheus' (version 3, every experimental function included): the parser checks arguments against it and
the engine finds its implementations by the same names.
"""

from __future__ import annotations

from dataclasses import dataclass

from query.promql.ast import ValueType


@dataclass(frozen=True, slots=True)
class Function:
    """Signature of one function.

    Attributes
    ----------
    name : as written in an expression
    arg_types : types of the arguments; the last one repeats when there may be more
    variadic : 0: exactly ``len(arg_types)`` arguments; n > 0: the last is optional and there may be up to
        ``len(arg_types) - 1 + n``; -1: any number from ``len(arg_types) - 1``
    return_type : type of the value
    experimental : refused unless enabled (Prometheus: ``--enable-feature=promql-experimental-functions``)
    """

    name: str
    arg_types: tuple[ValueType, ...]
    return_type: ValueType
    variadic: int = 0
    experimental: bool = False

    @property
    def args_min(self) -> int:
        """Fewest arguments of a call."""
        return len(self.arg_types) - (self.variadic != 0)

    @property
    def args_max(self) -> int | None:
        """Most arguments of a call, None where there is no limit."""
        return None if self.variadic < 0 else len(self.arg_types) - (self.variadic != 0) + self.variadic


_TYPES = {"v": ValueType.VECTOR, "m": ValueType.MATRIX, "s": ValueType.SCALAR, "t": ValueType.STRING}

# name, argument types, variadic; they return a vector unless listed in _SCALAR_FUNCTIONS
_VECTOR_FUNCTIONS = (
    "abs absent acos acosh asin asinh atan atanh ceil cos cosh deg exp floor histogram_avg histogram_count"
    " histogram_stddev histogram_stdvar histogram_sum ln log10 log2 rad scalar sgn sin sinh sort sort_desc sqrt"
    " tan tanh timestamp"
)
_RANGE_FUNCTIONS = (
    "absent_over_time avg_over_time changes count_over_time delta deriv first_over_time idelta increase irate"
    " last_over_time max_over_time min_over_time present_over_time rate resets stddev_over_time stdvar_over_time"
    " sum_over_time"
)
_DATE_FUNCTIONS = "day_of_month day_of_week day_of_year days_in_month hour minute month year"
_SCALAR_FUNCTIONS = frozenset({"scalar", "time", "pi", "start", "end", "step", "range", "min_of", "max_of"})

_SIGNATURES: tuple[tuple[str, str, int], ...] = (
    *((name, "v", 0) for name in _VECTOR_FUNCTIONS.split()),
    *((name, "m", 0) for name in _RANGE_FUNCTIONS.split()),
    *((name, "v", 1) for name in _DATE_FUNCTIONS.split()),
    ("clamp", "vss", 0),
    ("clamp_max", "vs", 0),
    ("clamp_min", "vs", 0),
    ("histogram_fraction", "ssv", 0),
    ("histogram_quantile", "sv", 0),
    ("label_join", "vttt", -1),
    ("label_replace", "vtttt", 0),
    ("pi", "", 0),
    ("predict_linear", "ms", 0),
    ("quantile_over_time", "sm", 0),
    ("round", "vs", 1),
    ("time", "", 0),
    ("vector", "s", 0),
)
_EXPERIMENTAL_SIGNATURES: tuple[tuple[str, str, int], ...] = (
    ("double_exponential_smoothing", "mss", 0),
    ("end", "", 0),
    ("histogram_quantiles", "vtss", 9),
    ("info", "vv", 1),
    ("mad_over_time", "m", 0),
    ("max_of", "ss", 0),
    ("min_of", "ss", 0),
    ("range", "", 0),
    ("sort_by_label", "vt", -1),
    ("sort_by_label_desc", "vt", -1),
    ("start", "", 0),
    ("start_timestamp", "v", 0),
    ("step", "", 0),
    ("ts_of_first_over_time", "m", 0),
    ("ts_of_last_over_time", "m", 0),
    ("ts_of_max_over_time", "m", 0),
    ("ts_of_min_over_time", "m", 0),
)

FUNCTIONS: dict[str, Function] = {
    name: Function(
        name,
        tuple(_TYPES[letter] for letter in letters),
        ValueType.SCALAR if name in _SCALAR_FUNCTIONS else ValueType.VECTOR,
        variadic,
        experimental,
    )
    for signatures, experimental in ((_SIGNATURES, False), (_EXPERIMENTAL_SIGNATURES, True))
    for name, letters, variadic in signatures
}
"""Every function by its name."""
