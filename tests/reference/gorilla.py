"""The XOR chunk codec as docs/format/chunk.md states it, on strings of bits."""

from __future__ import annotations

MASK = (1 << 64) - 1


def as_signed(value: int, width: int) -> int:
    """The two's complement number in the low ``width`` bits."""
    value &= (1 << width) - 1
    return value - (1 << width) if value >> (width - 1) else value


def bits_of(value: int, width: int) -> str:
    """The low ``width`` bits, most significant first."""
    return format(value & ((1 << width) - 1), f"0{width}b")


def encode_chunk(samples: list[tuple[int, int]]) -> list[int]:
    """Words of the payload of (time in ms, value bits) samples, the last word filled up with zeros."""
    time, value = samples[0]
    stream = bits_of(time, 64) + bits_of(value, 64)
    delta = 0
    window: tuple[int, int] | None = None  # zero bits above and below
    for next_time, next_value in samples[1:]:
        step = as_signed(next_time - time, 64)
        change = as_signed(step - delta, 64)
        if change == 0:
            stream += "0"
        elif -64 <= change < 64:
            stream += "10" + bits_of(change, 7)
        elif -2048 <= change < 2048:
            stream += "110" + bits_of(change, 12)
        elif -524288 <= change < 524288:
            stream += "1110" + bits_of(change, 20)
        else:
            stream += "1111" + bits_of(change, 64)
        xor = value ^ next_value
        if xor == 0:
            stream += "0"
        else:
            lead = min(64 - xor.bit_length(), 31)
            trail = (xor & -xor).bit_length() - 1
            size = 64 - lead - trail
            fits = window is not None and lead >= window[0] and trail >= window[1]
            if fits and 64 - sum(window) <= size + 11:
                stream += "10"
            else:
                window = (lead, trail)
                stream += "11" + bits_of(lead, 5) + bits_of(size - 1, 6)
            stream += bits_of(xor >> window[1], 64 - sum(window))
        time, value, delta = next_time, next_value, step
    stream += "0" * (-len(stream) % 64)
    return [int(stream[i : i + 64], 2) for i in range(0, len(stream), 64)]


def decode_chunk(words: list[int], count: int) -> list[tuple[int, int]]:
    """Samples of a payload; ValueError when it ends early or a window is wider than a word."""
    stream = "".join(bits_of(word, 64) for word in words)
    at = 0

    def take(n: int) -> int:
        nonlocal at
        if at + n > len(stream):
            raise ValueError("truncated")
        at += n
        return int(stream[at - n : at], 2)

    time, value = as_signed(take(64), 64), take(64)
    samples = [(time, value)]
    delta = 0
    window: tuple[int, int] | None = (0, 0)
    for _ in range(count - 1):
        width = 0
        for candidate in (7, 12, 20, 64):
            if not take(1):
                break
            width = candidate
        change = as_signed(take(width), width) if width else 0
        delta = as_signed(delta + change, 64)
        time = as_signed(time + delta, 64)
        if take(1):
            if take(1):
                lead, size = take(5), take(6) + 1
                if lead + size > 64:
                    raise ValueError("window wider than a word")
                window = (lead, 64 - lead - size)
            value ^= take(64 - sum(window)) << window[1]
        samples.append((time, value & MASK))
    return samples


def chunks_of(rows: list[int], samples: list[tuple[int, int]], span_ms: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """How sorted samples are split into chunks: (row, samples) each."""
    chunks: list[tuple[int, list[tuple[int, int]]]] = []
    for row, sample in zip(rows, samples, strict=True):
        if (
            not chunks
            or chunks[-1][0] != row
            or len(chunks[-1][1]) == 120
            or sample[0] // span_ms != chunks[-1][1][0][0] // span_ms
        ):
            chunks.append((row, []))
        chunks[-1][1].append(sample)
    return chunks
