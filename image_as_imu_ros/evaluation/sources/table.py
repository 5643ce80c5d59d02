"""Comma-separated tables with a header, checked as they are read."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from image_as_imu_ros.errors import DataFormatError


class Table:
    """
    A CSV file with a header line; lines that start with # are comments.

    :raises DataFormatError: if the file cannot be read, lacks a required column, has no row or
        a row of another length than the header
    """

    def __init__(self, path: Path, required: Sequence[str]) -> None:
        self.path = path
        try:
            with path.open(newline='', encoding='utf-8-sig') as file:
                lines = [line for line in csv.reader(file, skipinitialspace=True)
                         if line and not line[0].startswith('#')]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataFormatError(f'cannot read {path}: {error}') from error
        if len(lines) < 2:
            raise DataFormatError(f'{path} has no row below a header; is it truncated?')
        self.columns = [name.strip() for name in lines[0]]
        missing = [name for name in required if name not in self.columns]
        if missing:
            raise DataFormatError(f'{path} has no column "{missing[0]}"; '
                                  f'its columns are: {", ".join(self.columns)}')
        for number, line in enumerate(lines[1:], start=1):
            if len(line) != len(self.columns):
                raise DataFormatError(f'{path}, row {number}: {len(line)} values for '
                                      f'{len(self.columns)} columns; is it truncated?')
        self._rows = lines[1:]

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def text(self, name: str) -> list[str]:
        """One column as stripped text."""
        index = self.columns.index(name)
        return [row[index].strip() for row in self._rows]

    def numbers(self, *names: str) -> np.ndarray:
        """
        Columns as float64, (N,) for one name or (N, len(names)); empty cells become NaN.

        :raises DataFormatError: if a cell is not a number
        """
        values = np.array([[self._number(name, number, cell)
                            for number, cell in enumerate(self.text(name), start=1)]
                           for name in names])
        return values[0] if len(names) == 1 else values.T

    def stamps_ns(self, name: str) -> np.ndarray:
        """
        A column of seconds as int64 nanoseconds, (N,).

        :raises DataFormatError: if a cell is not a finite number
        """
        seconds = self.numbers(name)
        if not np.isfinite(seconds).all():
            row = int(np.argmin(np.isfinite(seconds))) + 1
            raise DataFormatError(f'{self.path}, row {row}: {name} is not a finite time')
        return np.round(seconds * 1e9).astype(np.int64)

    def _number(self, name: str, row: int, cell: str) -> float:
        if not cell:
            return float('nan')
        try:
            return float(cell)
        except ValueError:
            raise DataFormatError(
                f'{self.path}, row {row}: {name} "{cell}" is not a number') from None
