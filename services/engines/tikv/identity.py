"""Which life of the store this is: how a TiKV that was wiped, replaced or restored is known.

TiKV never goes back by itself. An operator may wipe it, or restore a backup: then state is lost
that was given out. So the store holds a random id, made with it, and counts how often it was
opened; a file in the node's data folder holds both as they were seen last. Another id, or a lower
count, is another life. A backup that was made *after* the node's last start and restored before
its next one is not told apart by that; a node that is running through it sees its epochs go back.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import struct
from pathlib import Path
from typing import NamedTuple

from services.engines.disk import Disk
from services.engines.tikv.client import TikvClient, Transaction

FILE = "tikv.json"
_ID_BYTES = 16
_OPENED = struct.Struct(">Q")


class Life(NamedTuple):
    id: bytes
    opened: int

    def packed(self) -> bytes:
        return self.id + _OPENED.pack(self.opened)


def id_of(row: bytes | None) -> bytes | None:
    return None if row is None else row[:_ID_BYTES]


async def begin(client: TikvClient, key: bytes) -> Life:
    """Count one more opening, of a new life if there is none; to count twice does no
    harm. Raises Unavailable, OutcomeUnknown."""

    async def count(transaction: Transaction) -> Life:
        row = (await transaction.get_many([key])).get(key)
        if row is None:
            life = Life(secrets.token_bytes(_ID_BYTES), 1)
        else:
            life = Life(row[:_ID_BYTES], _OPENED.unpack_from(row, _ID_BYTES)[0] + 1)
        await transaction.put([(key, life.packed())])
        return life

    return await client.write(count)


async def seen_last(folder: Path) -> Life | None:
    try:
        said = json.loads(await asyncio.to_thread((folder / FILE).read_bytes))
        return Life(bytes.fromhex(said["id"]), int(said["opened"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return Life(b"", 0)  # unreadable: unlike any


async def remember(folder: Path, disk: Disk, life: Life) -> None:
    text = json.dumps({"id": life.id.hex(), "opened": life.opened})
    await asyncio.to_thread(disk.make_folder, str(folder))
    await asyncio.to_thread(disk.write_whole, str(folder / FILE), text.encode())
