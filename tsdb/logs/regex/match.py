"""Which lines a regular expression matches: an automaton where there is one, RE2 for what it leaves open."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tsdb.logs.frame import LogFrame, Texts
from tsdb.logs.regex.automaton import automaton_of


def match_texts(texts: Texts, pattern: str) -> NDArray[np.bool_]:
    """What RE2 says of (n,) texts, which need not be UTF-8; nothing is copied."""
    size = int(texts.offsets[-1])
    buffers = [None, pa.py_buffer(np.ascontiguousarray(texts.offsets)), pa.py_buffer(texts.data[:size])]
    array = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(texts.offsets) - 1, buffers)
    matched = pc.match_substring_regex(array.view(pa.large_string()), pattern)
    return np.asarray(matched.to_numpy(zero_copy_only=False), np.bool_)


def match_frame(frame: LogFrame, pattern: str) -> NDArray[np.bool_]:
    """Which lines of a frame hold a match of a pattern that RE2 accepts, (n,) bool."""
    automaton = automaton_of(pattern)
    if automaton is None:
        return match_texts(frame.lines(), pattern)
    verdicts = frame.search(automaton)
    mask = verdicts > 0
    undecided = np.flatnonzero(verdicts < 0)
    if len(undecided):
        mask[undecided] = match_texts(frame.take(undecided).lines(), pattern)
    return mask
