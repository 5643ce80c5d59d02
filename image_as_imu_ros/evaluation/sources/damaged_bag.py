"""
Storage readers for bags that end in the middle, as after a crash, a full disk or a cut copy.

They stand in for those of rosbags, which need the index at the end of a whole file, and read in
the order of writing as far as the bytes go.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing, suppress
from pathlib import Path

from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
)
from rosbags.rosbag2 import ReaderError
from rosbags.rosbag2.metadata import ReaderMetadata
from rosbags.rosbag2.storage_mcap import McapReader

_MCAP_MAGIC = b'\x89MCAP0\r\n'
_MCAP_OPCODES = range(0x01, 0x10)
_FORMATS = {'ros2msg': MessageDefinitionFormat.MSG, 'ros2idl': MessageDefinitionFormat.IDL}


def _metadata(stamps_ns: Collection[int], count: int) -> ReaderMetadata:
    """Span and number of messages, from the first and last times of arrival."""
    start_ns, end_ns = min(stamps_ns), max(stamps_ns) + 1
    return ReaderMetadata(end_ns - start_ns, start_ns, end_ns, count, None, None, None, None)


class McapRemains(McapReader):
    """An MCAP file without its end; the chunk that is cut is left out."""

    def _open(self) -> None:
        if self.bio.read(8) != _MCAP_MAGIC:
            raise ReaderError('File magic is invalid.')
        self.data_start = self.bio.tell()
        *_, before_last, self.data_end = self._record_ends()
        try:
            self.meta_scan()
        except Exception:  # the end of the last one is not there though its place is: zeros
            for found in (self.schemas, self.channels, self.connections):
                found.clear()
            self.data_end = before_last
            self.meta_scan()
        found = self.statistics
        if not found.message_count:
            raise ReaderError('There is no whole message before the damage.')
        self.connections = [connection._replace(
            msgcount=found.channel_message_counts.get(connection.id, 0))
            for connection in self.connections]
        self.metadata = _metadata((found.start_time, found.end_time), found.message_count)

    def _record_ends(self) -> list[int]:
        """Find where the records end, up to the first that is cut or is no record."""
        size = os.fstat(self.bio.fileno()).st_size
        end = self.bio.tell()
        ends = [end, end]
        while len(head := self.bio.read(9)) == 9:
            opcode, length = struct.unpack('<BQ', head)
            if opcode not in _MCAP_OPCODES or end + 9 + length > size:
                break
            end = self.bio.seek(end + 9 + length)
            ends.append(end)
        return ends

    def messages(self, connections: Collection[Connection], start: int | None = None,
                 stop: int | None = None) -> Iterator[tuple[Connection, int, bytes]]:
        """Connection, time in ns and CDR bytes of each message, in the order of writing."""
        return self.messages_scan(connections, start, stop)


class Sqlite3Remains:
    """An SQLite file whose last pages are missing or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connections: list[Connection] = []
        self.metadata = ReaderMetadata(0, 2**63 - 1, 0, 0, None, None, None, None)
        self._database: sqlite3.Connection | None = None

    def open(self) -> None:
        """Read the topics, and count the messages that are left."""
        self._database = sqlite3.connect(
            f'{self.path.absolute().as_uri()}?immutable=1&mode=ro', uri=True)
        # Without it, SQLite refuses a file that is shorter than its header says.
        self._database.execute('PRAGMA writable_schema=ON')
        try:
            definitions = {
                name: MessageDefinition(_FORMATS[encoding], text)
                for name, encoding, text in self._database.execute(
                    'SELECT topic_type, encoding, encoded_message_definition '
                    'FROM message_definitions')}
        except (sqlite3.DatabaseError, KeyError):  # bags before Iron have none
            definitions = {}
        topics = self._database.execute(
            'SELECT id, name, type, serialization_format FROM topics').fetchall()
        counts: Counter[int] = Counter()
        stamps_ns = []
        for topic, stamp_ns in self._rows('SELECT topic_id, timestamp FROM messages'):
            counts[topic] += 1
            stamps_ns = [min(stamp_ns, *stamps_ns), max(stamp_ns, *stamps_ns)] if stamps_ns else [
                stamp_ns]
        if not counts:
            raise ReaderError('There is no whole message before the damage.')
        none = MessageDefinition(MessageDefinitionFormat.NONE, '')
        self.connections = [
            Connection(key, name, msgtype, definitions.get(msgtype, none), '', counts[key],
                       ConnectionExtRosbag2(serialization, []), self)
            for key, name, msgtype, serialization in topics]
        self.metadata = _metadata(stamps_ns, counts.total())

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()

    def messages(self, connections: Collection[Connection], start: int | None = None,
                 stop: int | None = None) -> Iterator[tuple[Connection, int, bytes]]:
        """Connection, time in ns and CDR bytes of each message, in the order of writing."""
        by_id = {connection.id: connection for connection in connections}
        for topic, stamp_ns, data in self._rows(
                'SELECT topic_id, timestamp, data FROM messages'):
            if topic in by_id and (start is None or stamp_ns >= start) and (
                    stop is None or stamp_ns < stop):
                yield by_id[topic], stamp_ns, data

    def _rows(self, query: str) -> Iterator[tuple]:
        """Rows up to the first page that cannot be read."""
        with closing(self._database.cursor()) as cursor, suppress(sqlite3.DatabaseError):
            yield from cursor.execute(query)


REMAINS = {'.mcap': McapRemains, '.db3': Sqlite3Remains}
"""Readers of damaged storage files, by suffix."""
