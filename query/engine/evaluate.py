"""The walk over an expression: every node evaluates to its value at all steps."""

from __future__ import annotations

from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from query.engine import aggregate, binary, functions
from query.engine.context import QueryContext, Steps
from query.engine.grid import Grid, RangeVector, Scalar, empty_table
from query.engine.histogram import classic_histogram
from query.engine.labels import label_join, label_replace
from query.engine.plan import has_selector, is_constant, unwrapped
from query.engine.window import (
    RANGE_FUNCTIONS,
    WindowCall,
    evaluate_call,
    instant_call,
    instant_vector,
    range_of_grid,
    range_vector,
    subquery_steps,
    window_call,
)
from query.errors import ExecutionError
from query.promql.ast import (
    Aggregation,
    Binary,
    Call,
    Expr,
    MatrixSelector,
    NumberLiteral,
    StringLiteral,
    Subquery,
    Unary,
    VectorSelector,
)

Value = Grid | Scalar | RangeVector | str

T = TypeVar("T")

_OTHERS = (
    "absent clamp clamp_max clamp_min histogram_fraction histogram_quantile label_join label_replace pi round scalar"
    " sort sort_desc time timestamp vector"
)
FUNCTIONS = frozenset((*RANGE_FUNCTIONS, *functions.ELEMENTWISE, *functions.DATES, *_OTHERS.split()))
"""All functions this engine evaluates."""


class Evaluator:
    """Evaluates expressions at one set of steps."""

    __slots__ = ("ctx", "steps")

    def __init__(self, ctx: QueryContext, steps: Steps) -> None:
        self.ctx = ctx
        self.steps = steps

    def evaluate(self, expr: Expr) -> Value:
        """Value of an expression at all steps."""
        expr = unwrapped(expr)
        match expr:
            case VectorSelector():
                return instant_vector(self.ctx, self.steps, expr)
            case MatrixSelector():
                return range_vector(self.ctx, self.steps, expr.selector, expr.range_ms)
            case NumberLiteral():
                return Scalar(np.full(self.steps.count, expr.value))
            case StringLiteral():
                return expr.value
            case Subquery():
                return self._subquery(expr)
        self.ctx.check_time()
        if self.steps.count > 1 and is_constant(expr) and has_selector(expr):
            return self._once(expr)
        match expr:
            case Call():
                return self._call(expr)
            case Aggregation():
                return self._aggregation(expr)
            case Binary():
                return self._binary(expr)
            case Unary():
                return self._unary(expr)
        raise AssertionError(f"no evaluation of {type(expr).__name__}")

    def _once(self, expr: Expr) -> Value:
        """An expression whose selectors are all pinned: evaluated at one step, true at all."""
        value = Evaluator(self.ctx, Steps(self.steps.first_ms, self.steps.step_ms, 1)).evaluate(expr)
        count = self.steps.count
        if isinstance(value, Scalar):
            return Scalar(np.repeat(value.values, count))
        assert isinstance(value, Grid)
        self.ctx.reserve(len(value), count)
        values = np.repeat(value.values, count, axis=1)
        return Grid(value.labels, values, np.repeat(value.present, count, axis=1), value.drop_name)

    def _as(self, kind: type[T], expr: Expr) -> T:
        """Value of an argument whose type the parser has checked."""
        value = self.evaluate(expr)
        assert isinstance(value, kind), f"{type(value).__name__} where {kind.__name__} is due"
        return value

    def vector(self, expr: Expr) -> Grid:
        """Value of an instant vector expression."""
        return self._as(Grid, expr)

    def scalar(self, expr: Expr) -> NDArray[np.float64]:
        """(steps,) values of a scalar expression."""
        return self._as(Scalar, expr).values

    def _text(self, expr: Expr) -> str:
        return self._as(str, expr)

    # -------------------------------------------------------------- nodes

    def _subquery(self, node: Subquery) -> RangeVector:
        steps, end_ms, step_ms = subquery_steps(self.ctx, self.steps, node)
        if steps.count > self.ctx.limits.subquery_steps_max:
            raise ExecutionError(
                f"subquery has {steps.count} steps, more than limits.query.subquery_steps_max "
                f"({self.ctx.limits.subquery_steps_max})"
            )
        if steps.count == 0:  # no multiple of the resolution lies in any window
            grid = Grid(
                empty_table(self.ctx.symbols), np.zeros((0, 0)), np.zeros((0, 0), np.bool_), np.zeros(0, np.bool_)
            )
        else:
            with self.ctx.uncounted():
                grid = as_grid(self.ctx, Evaluator(self.ctx, steps).evaluate(node.expr))
        return range_of_grid(grid, steps, node.range_ms, end_ms, step_ms)

    def _unary(self, node: Unary) -> Value:
        value = self.evaluate(node.expr)
        if node.op == "+":
            return value
        if isinstance(value, Scalar):
            return Scalar(-value.values)
        assert isinstance(value, Grid)
        return value.derived(-value.values)

    def _binary(self, node: Binary) -> Value:
        """A chain ``a + b + c ...`` is walked in a loop: people generate thousands of terms."""
        chain = [node]
        while isinstance(left := unwrapped(chain[-1].lhs), Binary):
            chain.append(left)
        value = self.evaluate(left)
        for link in reversed(chain):
            value = self._combine(link, value, self.evaluate(link.rhs))
        return value

    def _combine(self, node: Binary, lhs: Value, rhs: Value) -> Value:
        if isinstance(lhs, Scalar):
            if isinstance(rhs, Scalar):
                return binary.scalars(node, lhs, rhs)
            return binary.vector_scalar(node, cast(Grid, rhs), lhs, swapped=True)
        assert isinstance(lhs, Grid)
        if isinstance(rhs, Scalar):
            return binary.vector_scalar(node, lhs, rhs, swapped=False)
        assert isinstance(rhs, Grid)
        result = (binary.sets if node.op in binary.SETS else binary.vectors)(self.ctx, node, lhs, rhs)
        self.ctx.release(lhs)
        self.ctx.release(rhs)
        return result

    def _aggregation(self, node: Aggregation) -> Grid:
        if node.op in aggregate.FOLDS:
            inner = unwrapped(node.expr)
            if isinstance(inner, VectorSelector) and self.steps.count > 1:
                call = instant_call(self.ctx, self.steps, inner)
                if aggregate.is_batched(call):
                    return aggregate.fold_windows(self.ctx, node, call, inner.span)
                return aggregate.fold(self.ctx, node, evaluate_call(self.ctx, call, inner.span))
            if isinstance(inner, Call) and inner.func in RANGE_FUNCTIONS:
                call = self._window(inner)
                if inner.func != "absent_over_time" and aggregate.is_batched(call):
                    return aggregate.fold_windows(self.ctx, node, call, inner.args[0].span)
                return aggregate.fold(self.ctx, node, self._window_result(inner, call))
            return aggregate.fold(self.ctx, node, self.vector(inner))
        assert node.param is not None
        if node.op == "count_values":
            grid = self.vector(node.expr)
            result = aggregate.count_values(self.ctx, node, grid, self._text(node.param))
        else:
            param = self.scalar(node.param)
            grid = self.vector(node.expr)
            if node.op != "quantile":
                return aggregate.topk(node, grid, param)
            result = aggregate.quantile(self.ctx, node, grid, param)
        self.ctx.release(grid)
        return result

    def _window(self, node: Call) -> WindowCall:
        """A function of a range vector, ready to run."""
        params = None
        vector = node.args[0]
        if node.func == "quantile_over_time":
            vector = node.args[1]
            params = self.scalar(node.args[0])
        elif node.func == "predict_linear":
            params = self.scalar(node.args[1])
        call = window_call(node.func, self._as(RangeVector, vector), self.steps, params)
        if params is not None and node.func == "quantile_over_time" and len(call):
            self.ctx.annotations.check_quantiles(params, node.args[0].span)
        return call

    def _window_result(self, node: Call, call: WindowCall) -> Grid:
        grid = evaluate_call(self.ctx, call, node.args[0].span)
        if node.func == "absent_over_time":
            return functions.absent(self.ctx, unwrapped(node.args[0]), grid, self.steps.count)
        return grid

    def _call(self, node: Call) -> Value:
        func, args = node.func, node.args
        if func in RANGE_FUNCTIONS:
            return self._window_result(node, self._window(node))
        elementwise = functions.ELEMENTWISE.get(func)
        if elementwise is not None:
            grid = self.vector(args[0])
            return grid.derived(elementwise(grid.values))
        if func in functions.DATES:
            if not args:
                return functions.vector_of(self.ctx, Scalar(functions.date_part(func, self._times())))
            grid = self.vector(args[0])
            return grid.derived(functions.date_part(func, grid.values))
        method = getattr(self, f"_call_{func}")
        return cast(Value, method(node))

    def _times(self) -> NDArray[np.float64]:
        """(steps,) evaluation times in seconds."""
        return self.steps.times_ms() / 1000.0

    # -------------------------------------------------------------- functions by name

    def _call_time(self, _node: Call) -> Scalar:
        return Scalar(self._times())

    def _call_pi(self, _node: Call) -> Scalar:
        return Scalar(np.full(self.steps.count, np.pi))

    def _call_scalar(self, node: Call) -> Scalar:
        grid = self.vector(node.args[0])
        self.ctx.release(grid)
        return functions.scalar_of(grid)

    def _call_vector(self, node: Call) -> Grid:
        return functions.vector_of(self.ctx, self._as(Scalar, node.args[0]))

    def _call_absent(self, node: Call) -> Grid:
        grid = self.vector(node.args[0])
        return functions.absent(self.ctx, unwrapped(node.args[0]), grid, self.steps.count)

    def _call_timestamp(self, node: Call) -> Grid:
        argument = unwrapped(node.args[0])
        if isinstance(argument, VectorSelector):
            return instant_vector(self.ctx, self.steps, argument, want_time=True)
        grid = self.vector(argument)
        return grid.derived(np.broadcast_to(self._times(), grid.values.shape).copy())

    def _call_round(self, node: Call) -> Grid:
        grid = self.vector(node.args[0])
        nearest = self.scalar(node.args[1]) if len(node.args) > 1 else np.ones(self.steps.count)
        return grid.derived(functions.round_to(grid.values, nearest))

    def _call_clamp(self, node: Call) -> Grid:
        return functions.clamp(self.vector(node.args[0]), self.scalar(node.args[1]), self.scalar(node.args[2]))

    def _call_clamp_max(self, node: Call) -> Grid:
        return functions.clamp(self.vector(node.args[0]), np.full(1, -np.inf), self.scalar(node.args[1]))

    def _call_clamp_min(self, node: Call) -> Grid:
        return functions.clamp(self.vector(node.args[0]), self.scalar(node.args[1]), np.full(1, np.inf))

    def _sort(self, node: Call, descending: bool) -> Grid:
        if self.steps.count > 1:
            self.ctx.annotations.warn(
                "sort is ineffective for range queries since results are always ordered by labels", node.span
            )
        return functions.sort(self.vector(node.args[0]), self.steps, descending)

    def _call_sort(self, node: Call) -> Grid:
        return self._sort(node, descending=False)

    def _call_sort_desc(self, node: Call) -> Grid:
        return self._sort(node, descending=True)

    def _call_label_replace(self, node: Call) -> Grid:
        target, template, source, pattern = map(self._text, node.args[1:])
        return label_replace(self.ctx, self.vector(node.args[0]), target, template, source, pattern)

    def _call_label_join(self, node: Call) -> Grid:
        target, separator, *sources = map(self._text, node.args[1:])
        return label_join(self.ctx, self.vector(node.args[0]), target, separator, sources)

    def _call_histogram_quantile(self, node: Call) -> Grid:
        quantiles = self.scalar(node.args[0])
        self.ctx.annotations.check_quantiles(quantiles, node.args[0].span)
        grid = self.vector(node.args[1])
        return classic_histogram(self.ctx, self.steps, grid, quantiles, None, node.args[1].span)

    def _call_histogram_fraction(self, node: Call) -> Grid:
        low, high = self.scalar(node.args[0]), self.scalar(node.args[1])
        return classic_histogram(self.ctx, self.steps, self.vector(node.args[2]), low, high, node.args[2].span)


def as_grid(ctx: QueryContext, value: Value) -> Grid:
    """A scalar as the one series without labels that it is in a range query or subquery."""
    if isinstance(value, Scalar):
        return functions.vector_of(ctx, value)
    assert isinstance(value, Grid)
    return value
