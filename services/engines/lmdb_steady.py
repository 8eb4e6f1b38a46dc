"""The durable state of an LMDB file that is written without fsync; see services.engines.lmdb_kv.

LMDB's data format 1: pages 0 and 1 each hold a 16-byte page header and a meta block; the meta with
the higher transaction id is in charge.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import time
import zlib

from imcore.errors import BadInput, Damaged, DiskFull, OutcomeUnknown
from services.engines.disk import Disk, File

log = logging.getLogger("im.kv")

RESTORED = "restored.mdb"  # a snapshot that is copied beside the KV's file, to take its place
PAGE_BYTES = os.sysconf("SC_PAGESIZE")  # LMDB 0.9 uses the machine's
_META = struct.Struct("<16xII")  # magic, version
_TXN_ID = struct.Struct("<Q")
_TXN_ID_AT = 16 + 8 + 16 + 2 * 48 + 8
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_CRC = struct.Struct("<I")


def machine_boot() -> str:
    """Names this boot of the machine; empty where the kernel does not tell (never trusted)."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def meta_page(fd: int, txn_id: int) -> bytes:
    """The meta page of this committed transaction."""
    for number in (0, 1):
        page = os.pread(fd, PAGE_BYTES, number * PAGE_BYTES)
        if _is_meta(page) and _TXN_ID.unpack_from(page, _TXN_ID_AT)[0] == txn_id:
            return page
    raise Damaged(f"no meta page of transaction {txn_id}: LMDB's file format has changed")


def _is_meta(page: bytes) -> bool:
    return len(page) == PAGE_BYTES and _META.unpack_from(page) == (_MAGIC, _VERSION)


WENT_BACK = "went-back"  # a file: state was taken back, and nobody works with it yet


def sync_data(fd: int, folder: str, disk: Disk) -> None:
    if disk.faults.fsync_delay_ms:
        time.sleep(disk.faults.fsync_delay_ms / 1000)
    try:
        os.fdatasync(fd)
    except OSError as error:
        raise OutcomeUnknown(f"cannot sync {folder}: {error.strerror}") from error


def save(folder: str, disk: Disk, meta: bytes) -> None:
    disk.write_whole(f"{folder}/steady", _CRC.pack(zlib.crc32(meta)) + meta)


def mark_running(folder: str, disk: Disk, boot: str) -> None:
    disk.write_whole(f"{folder}/running", json.dumps({"machine_boot": boot}).encode())


def mark_clean(folder: str, disk: Disk) -> None:
    disk.remove(f"{folder}/running")
    disk.sync_folder(folder)


def prepare(folder: str, disk: Disk, boot: str) -> tuple[bool, File]:
    """Lock the folder and make its file fit to be opened. First: whether state was taken back."""
    disk.make_folder(folder)
    lock = disk.lock(f"{folder}/lock", f"the KV {folder}")
    try:
        disk.remove(f"{folder}/{RESTORED}")  # half a copy: whoever made it was killed
        rolled_back = _recover(folder, disk, boot)
        mark_running(folder, disk, boot)
        return rolled_back, lock
    except BaseException:
        lock.close()
        raise


def _recover(folder: str, disk: Disk, boot: str) -> bool:
    names = disk.list(folder)
    if "data.mdb" not in names or not _maybe_torn(folder, disk, boot, names):
        return WENT_BACK in names  # in a start that died before anybody was told
    disk.write_whole(f"{folder}/{WENT_BACK}", b"")
    if "steady" in names and _put_back(folder, disk):
        log.warning("the machine lost power: the KV %s goes back to its last sync", folder)
        return True
    set_aside(folder, disk)
    return True


def told(folder: str, disk: Disk) -> None:
    """Whoever works with the state has been told that it went back."""
    if WENT_BACK in disk.list(folder):
        disk.remove(f"{folder}/{WENT_BACK}")
        disk.sync_folder(folder)


def set_aside(folder: str, disk: Disk) -> None:
    disk.write_whole(f"{folder}/{WENT_BACK}", b"")
    log.error("the KV %s is damaged: it is set aside and begins empty", folder)
    disk.rename(f"{folder}/data.mdb", f"{folder}/data.mdb.damaged")
    disk.sync_folder(folder)


def _maybe_torn(folder: str, disk: Disk, boot: str, names: list[str]) -> bool:
    if "running" not in names:
        return False  # closed cleanly, or restored
    try:
        before = json.loads(disk.read(f"{folder}/running"))["machine_boot"]
    except (ValueError, KeyError, TypeError):
        return True
    return not boot or bool(before != boot)


def _put_back(folder: str, disk: Disk) -> bool:
    data = disk.read(f"{folder}/steady")
    meta = data[_CRC.size :]
    if not _is_meta(meta) or _CRC.unpack_from(data)[0] != zlib.crc32(meta):
        return False
    path = f"{folder}/data.mdb"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise BadInput(f"cannot open {path}: {error.strerror}") from error
    try:
        # Both pages, so that no newer meta stays in charge; each with its own page number.
        for number in (0, 1):
            os.pwrite(fd, struct.pack("<Q", number) + meta[8:], number * PAGE_BYTES)
        os.fsync(fd)
    except OSError as error:
        raise DiskFull(f"cannot write {path}: {error.strerror}") from error
    finally:
        os.close(fd)
    return True
