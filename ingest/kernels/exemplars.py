"""Where the exemplars of a remote-write 1.0 body lie; walked only when there are some."""

from __future__ import annotations

from ingest.kernels.protobuf import next_field, read_varint
from ingest.kernels.remote_write import LABEL_TAG, PENDING
from tsdb.kernels._jit import const, i64, kernel, mut, u8, u32, u64
from tsdb.kernels.keys import find_key

# columns of ``found``
FOUND_REF, FOUND_BEGIN, FOUND_END, FOUND_SERIES_BEGIN, FOUND_SERIES_END = range(5)
FOUND_COLUMNS = 5


@kernel(i64(const(u8), i64, const(u8), const(u64), const(u32), const(u32), const(u64), mut(i64, 2)))
def find_exemplars(body, n_bytes, key_bytes, key_offsets, key_lengths, key_refs, slots, found):
    """List the exemplars with their series.

    Parameters
    ----------
    body : (>= n_bytes + 64,) uint8, const      a body that ``parse_write`` accepted
    n_bytes : int64
    key_bytes ... slots : as of ``KeyTable.arrays()``
    found : (n, 5) int64, written               columns ``FOUND_*``; ref ``PENDING`` when the table has no such key

    Returns
    -------
    int64    exemplars written, at most n
    """
    n = i64(0)
    pos = i64(0)
    while pos < n_bytes:
        field, _, begin, pos = next_field(body, pos, n_bytes)
        if field != 1:
            continue
        ref = i64(-1)
        at = begin
        while at < pos:
            field, _, inner, at = next_field(body, at, pos)
            if field != 3 or n >= len(found):
                continue
            if ref < 0:  # the first exemplar of this series
                ref = i64(PENDING)
                stop = begin
                while stop < pos and body[stop] == LABEL_TAG:
                    size, stop = read_varint(body, stop + 1, pos)
                    stop += i64(size)
                if stop > begin:
                    key = i64(find_key(body, begin, stop, key_bytes, key_offsets, key_lengths, slots))
                    if key > 0:
                        ref = i64(key_refs[key])
            found[n, FOUND_REF] = ref
            found[n, FOUND_BEGIN] = inner
            found[n, FOUND_END] = at
            found[n, FOUND_SERIES_BEGIN] = begin
            found[n, FOUND_SERIES_END] = pos
            n += 1
    return n
