"""The file of positions: any damage to it is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.nginx.positions import Position, load_positions, save_positions


def test_any_damage_of_the_positions_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "positions.json"
    positions = [Position(f"/var/log/nginx/{i}.log", 2049, 1311 + i, 1024, 12345 * i, 48_000 + i, i) for i in range(2)]
    save_positions(path, positions)
    whole = path.read_bytes()
    assert load_positions(path) == positions
    flips = (
        whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]
        for at in range(len(whole))
        for bit in (0, at % 8)
    )
    for damaged in (*flips, *(whole[:size] for size in range(len(whole))), bytes(len(whole)), whole + b"}"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"positions\.json") as raised:
            load_positions(path)
        assert str(path) in str(raised.value)
    path.write_bytes(whole)
    assert load_positions(path) == positions
