"""Kernel that finds the chunks of chosen series in a block."""

from __future__ import annotations

from tsdb.kernels._jit import const, i32, i64, kernel, mut, u8, u16, u32


@kernel(
    i64(
        const(i32), i64, i64, const(u32), const(i64), const(i64), const(i64), const(u16), const(u16), const(u8),
        i64, mut(i32), mut(u8), mut(i64), mut(i64), mut(i32), mut(i64), mut(i32), mut(u8),
    )
)  # fmt: skip
def select_chunks(
    rows, mint_ms, maxt_ms, first_chunk, first_word, min_ms, max_ms, counts, word_counts, kinds,
    frame_words, out_rows, out_kinds, out_min_ms, out_max_ms, out_counts, out_word_offsets, out_word_counts, out_frames,
):  # fmt: skip
    """Descriptors of the chunks of some rows that reach into a time range.

    Parameters
    ----------
    rows : (m,) int32              any order; a row beyond the block's has no chunks
    mint_ms, maxt_ms : inclusive
    first_chunk : (n_rows + 1,) uint32      chunks of a row are ``[first_chunk[r], first_chunk[r + 1])``
    first_word : (n_rows + 1,) int64        payloads of a row's chunks follow each other from here
    min_ms, max_ms, counts, word_counts, kinds : (n_chunks,)
    frame_words : words of one checksummed frame
    out_rows : (all chunks of the rows,) int32, written     place in ``rows``; the other out_* likewise
    out_frames : (n_frames,) uint8, written                 1 where a payload lies

    Returns
    -------
    int64        chunks found
    """
    found = 0
    for place in range(rows.shape[0]):
        row = rows[place]
        if row < 0 or row + 1 >= first_chunk.shape[0]:
            continue
        word = first_word[row]
        for chunk in range(first_chunk[row], first_chunk[row + 1]):
            n_words = i64(word_counts[chunk])
            if min_ms[chunk] <= maxt_ms and max_ms[chunk] >= mint_ms:
                out_rows[found] = i32(place)
                out_kinds[found] = kinds[chunk]
                out_min_ms[found] = min_ms[chunk]
                out_max_ms[found] = max_ms[chunk]
                out_counts[found] = i32(counts[chunk])
                out_word_offsets[found] = word
                out_word_counts[found] = i32(n_words)
                for frame in range(word // frame_words, (word + n_words - 1) // frame_words + 1):
                    out_frames[frame] = u8(1)
                found += 1
            word += n_words
    return found
