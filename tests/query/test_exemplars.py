"""Exemplars in answers: which series are meant, and how numbers are written."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from query.exemplars import SeriesExemplars, exemplar_data, selectors_of, time_text, value_text
from query.json_out import success
from query.promql.parser import parse
from tests.reference.json_text import float_text


def test_selectors_of_any_expression() -> None:
    text = 'sum by (a) (rate(x{b="1"}[5m])) / -(y offset 1m) > topk(scalar(n), max_over_time(z[1h:1m])) + y + 1'
    names = [matchers[-1].value for matchers in selectors_of(parse(text))]
    assert len(names) == 4  # y once
    assert selectors_of(parse("1 + vector(2)")) == []


@given(st.floats())
def test_values_are_written_as_in_vectors(value: float) -> None:
    assert value_text(value) == float_text(value)


def test_answer() -> None:
    series = SeriesExemplars({"__name__": "m"}, [({"trace_id": "ab"}, 6.0, 1600096945479), ({}, 0.5, 2000)])
    text = success(exemplar_data([series])).decode()
    assert text == (
        '{"status":"success","data":[{"seriesLabels":{"__name__":"m"},"exemplars":[{"labels":{"trace_id":"ab"},'
        '"value":"6","timestamp":1600096945.479},{"labels":{},"value":"0.5","timestamp":2}]}]}'
    )
    assert json.loads(text)["status"] == "success"
    assert time_text(-1500) == b"-1.500"
