"""PromQL over arrays: every node of an expression is evaluated at all steps at once."""

from query.engine.engine import Engine

__all__ = ["Engine"]
