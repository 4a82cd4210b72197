"""Running an automaton over many texts."""

from __future__ import annotations

from tsdb.kernels._jit import const, i64, kernel, mut, u8, u32


@kernel(i64(const(u32), const(u8), i64, const(u8), const(i64), const(i64), mut(i64)))
def step_texts(table, classes, fixed, data, starts, lengths, states):
    """Follow each text from its state; one text alone waits for the table at every byte, so four go side by side.

    Parameters
    ----------
    table : uint32        the state behind state s and a byte of class c is ``table[s + c]``
    classes : (256,) uint8
    fixed : states below it are never left
    data : uint8; starts, lengths : (n,) int64
    states : (n,) int64        before a text, and then behind it
    """
    n = i64(len(starts))
    i = i64(0)
    while i < n:
        k = i64(0)
        if i + 4 <= n:
            a, b, c, d = starts[i], starts[i + 1], starts[i + 2], starts[i + 3]
            s, t, u, v = states[i], states[i + 1], states[i + 2], states[i + 3]
            together = min(lengths[i], lengths[i + 1], lengths[i + 2], lengths[i + 3])
            while k < together and (s >= fixed or t >= fixed or u >= fixed or v >= fixed):
                s = i64(table[s + classes[data[a + k]]])
                t = i64(table[t + classes[data[b + k]]])
                u = i64(table[u + classes[data[c + k]]])
                v = i64(table[v + classes[data[d + k]]])
                k += 1
            states[i], states[i + 1], states[i + 2], states[i + 3] = s, t, u, v
        for j in range(i, min(i + 4, n)):
            s = states[j]
            at = starts[j] + k
            end = starts[j] + lengths[j]
            while at < end and s >= fixed:
                s = i64(table[s + classes[data[at]]])
                at += 1
            states[j] = s
        i += 4
    return n
