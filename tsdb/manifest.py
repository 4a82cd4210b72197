"""Which blocks of a shard live: generations of one small file (docs/format/manifest.md).

Generation N + 1 is created by put-if-absent, and that is the only commit: a block nobody lists does not exist.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, replace
from typing import Any

from tsdb.block.block import BlockMeta, read_meta
from tsdb.blockstore import BlockStore
from tsdb.errors import CorruptionError, MeshpulseError

FORMAT_VERSION = 2
VERSIONS_READ = (1, 2)
"""Version 1 knew neither ``newest_ms`` nor ``deleted``: what it lacks has its default."""
MIN_MS = -(1 << 63)
"""``cut_ms`` of a shard that was never cut."""

_HEAD = '{"crc32":"'
_MIDDLE = '","manifest":'
_CRC_DIGITS = 8


class ShardCountError(MeshpulseError):
    """The data folder was made with another number of shards; it is opened with that number or not at all."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One generation.

    Attributes
    ----------
    generation : 0 = nothing was committed yet
    shard_count : of the tenant, a power of two; fixed for the life of the data
    cut_ms : samples older than this are in blocks (those that were logged before ``next_position``)
    next_position : log positions below it have been cut
    blocks : what lives
    newest_ms : time of the newest sample that was cut; it never falls, so that what is too old does not depend on
        what is deleted
    deletions : requests to delete log rows (docs/format/logs.md); written only where there are any
    """

    generation: int
    shard_count: int
    cut_ms: int = MIN_MS
    next_position: int = 0
    blocks: tuple[BlockMeta, ...] = ()
    newest_ms: int = MIN_MS
    deletions: tuple[dict[str, Any], ...] = ()


def encode_manifest(manifest: Manifest) -> bytes:
    """The file: JSON, with the checksum of the inner object's exact bytes in front."""
    fields = asdict(manifest)
    if not manifest.deletions:
        del fields["deletions"]
    body = json.dumps({"version": FORMAT_VERSION, **fields}, separators=(",", ":"))
    return f"{_HEAD}{zlib.crc32(body.encode()):0{_CRC_DIGITS}x}{_MIDDLE}{body}}}\n".encode()


def decode_manifest(data: bytes, key: str) -> Manifest:
    """What :func:`encode_manifest` wrote.

    Raises
    ------
    CorruptionError
    """
    start = len(_HEAD) + _CRC_DIGITS + len(_MIDDLE)
    body = data[start:-2]
    frame = f"{_HEAD}{zlib.crc32(body):0{_CRC_DIGITS}x}{_MIDDLE}".encode()
    if data[:start] != frame or data[-2:] != b"}\n":
        raise CorruptionError(key, 0, "manifest fails its checksum")
    fields = json.loads(body)
    version = fields.pop("version")
    if version not in VERSIONS_READ:
        raise CorruptionError(key, start, f"manifest version {version}, this program reads {VERSIONS_READ}")
    blocks = tuple(BlockMeta(**block) for block in fields.pop("blocks"))
    return Manifest(blocks=blocks, deletions=tuple(fields.pop("deletions", ())), **fields)


class ManifestStore:
    """Manifest generations of one shard.

    Parameters
    ----------
    prefix : the shard's, ``tenants/<id>/shard-<k>``
    shard_count : the configured one
    """

    def __init__(self, store: BlockStore, prefix: str, shard_count: int) -> None:
        self._store = store
        self._prefix = prefix
        self._shard_count = shard_count
        self._newest_good = 0
        self.damage: list[str] = []

    def _key(self, generation: int) -> str:
        return f"{self._prefix}/manifest-{generation:020d}"

    def _generations(self) -> list[int]:
        """Generations there are, damaged ones too, newest first."""
        stem = f"{self._prefix}/manifest-"
        found = [key[len(stem) :] for key in self._store.list(stem)]
        return sorted((int(digits) for digits in found if digits.isdigit()), reverse=True)

    def load(self) -> Manifest:
        """The newest generation that checks out; what a crash left behind is cleaned up.

        Blocks that no manifest lists are removed: their samples are still in the log. But when the newest generation
        is damaged, its blocks may be among those not listed by the one before, and the log may have let go of their
        samples. Then nothing is removed, every block that checks out is taken in, and ``damage`` says so: a block
        too many is harmless (readers drop repeated samples), one too few is a loss.

        Raises
        ------
        ShardCountError        the data were written with another number of shards
        """
        generations = self._generations()
        manifest = Manifest(0, self._shard_count)
        for generation in generations:
            try:
                manifest = decode_manifest(bytes(self._store.open(self._key(generation))), self._key(generation))
                self._newest_good = generation
                break
            except (CorruptionError, OSError, ValueError, TypeError, KeyError) as error:
                self.damage.append(f"manifest generation {generation} of {self._prefix} cannot be read: {error}")
        if manifest.shard_count != self._shard_count:
            raise ShardCountError(
                f"{self._prefix} was written with {manifest.shard_count} shards, {self._shard_count} are configured"
            )
        listed = {block.key for block in manifest.blocks}
        unlisted = [key for key in self._store.list(f"{self._prefix}/block-") if key not in listed]
        if self.damage:
            return self._with_newest_tombstones(self._adopt(manifest, unlisted))
        used = {block.deleted for block in manifest.blocks}
        unlisted += [key for key in self._store.list(f"{self._prefix}/deleted-") if key not in used]
        for key in unlisted:
            self._store.delete(key)
        return manifest

    def tombstones_key(self, block: BlockMeta, generation: int) -> str:
        """Where the tombstones of a block lie that a manifest generation names."""
        return f"{self._prefix}/deleted-{block.key.rpartition('/block-')[2]}-{generation:020d}"

    def _with_newest_tombstones(self, manifest: Manifest) -> Manifest:
        """After damage: the newest tombstones of each block, which delete everything that older ones do."""
        keys = self._store.list(f"{self._prefix}/deleted-")
        blocks = []
        for block in manifest.blocks:
            stem = self.tombstones_key(block, 0)[:-20]
            own = [key for key in keys if key.startswith(stem) and len(key) == len(stem) + 20]
            blocks.append(replace(block, deleted=own[-1]) if own else block)
        return replace(manifest, blocks=tuple(blocks))

    def _adopt(self, manifest: Manifest, unlisted: list[str]) -> Manifest:
        adopted = []
        for key in unlisted:
            try:
                adopted.append(read_meta(self._store, key))
            except (CorruptionError, OSError, ValueError, TypeError, KeyError) as error:
                self.damage.append(f"block {key} cannot be taken in: {error}")
        if not adopted:
            return manifest
        self.damage.append(f"{len(adopted)} blocks of {self._prefix} were taken in without a manifest that lists them")
        blocks = sorted((*manifest.blocks, *adopted), key=lambda block: (block.min_ms, block.key))
        return replace(manifest, blocks=tuple(blocks))

    def commit(self, manifest: Manifest) -> Manifest:
        """Make a manifest the newest generation; the one before is kept, older ones are removed.

        Returns
        -------
        Manifest        as committed: its generation is above every file there is, also a damaged one

        Raises
        ------
        tsdb.blockstore.AlreadyExistsError        another owner of the shard was first; load again
        """
        generations = self._generations()
        if self.damage and generations and generations[0] >= manifest.generation:
            manifest = replace(manifest, generation=generations[0] + 1)
        self._store.create(self._key(manifest.generation), [encode_manifest(manifest)])
        for generation in generations:
            if generation < self._newest_good:
                self._store.delete(self._key(generation))
        self._newest_good = manifest.generation
        return manifest
