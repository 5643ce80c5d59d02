"""Several evaluations side by side: one row for each recording, their mean and the worst."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from image_as_imu_ros.files import write_atomically

_AXES = ('x', 'y', 'z')
_PER_AXIS = {
    'zero_rad_s': lambda summary: summary['zero_rotation_rmse_rad_s'],
    'paper_rmse_rad_s': lambda summary: _rmse(summary, 'paper'),
    'rmse_rad_s': lambda summary: _rmse(summary, 'interpolated'),
    'slope': lambda summary: summary['protocols']['interpolated']['rotation_slope'],
}
_SINGLE = ('sign_accuracy', 'coverage_95', 'nees_mean', 'time_offset_s')
_IDEAL = {'slope': 1.0, 'sign_accuracy': 1.0, 'coverage_95': 0.95, 'nees_mean': 3.0}
"""The worst value is the one farthest from these; of the others, the one farthest from zero."""

FIGURES = (*(f'{name}_{axis}' for name in _PER_AXIS for axis in _AXES), 'rmse_rad_s_vector',
           *_SINGLE)
COLUMNS = ('recording', 'source', 'frames', 'evaluated', *FIGURES, 'frame_ms_p50', 'warnings',
           'error')
"""Columns of overview.csv; rmse_rad_s is of protocol interpolated, oracle-signed if single."""


def row_of(name: str, summary: dict[str, Any]) -> dict[str, Any]:
    """Row of one recording from its summary; None where a figure is unknown."""
    row = {'recording': name, 'source': summary['source'], 'frames': summary['frames'],
           'evaluated': summary['evaluated']}
    for figure, values_of in _PER_AXIS.items():
        values = values_of(summary) or [None] * 3
        row |= {f'{figure}_{axis}': value for axis, value in zip(_AXES, values)}
    rmse = [row[f'rmse_rad_s_{axis}'] for axis in _AXES]
    row['rmse_rad_s_vector'] = None if None in rmse else math.hypot(*rmse)
    row |= {figure: summary[figure] for figure in _SINGLE}
    return row | {'frame_ms_p50': summary['frame_ms']['p50'], 'warnings': summary['warnings'],
                  'error': None}


def failed_row(name: str, source: Path, error: Exception) -> dict[str, Any]:
    """Row of a recording that could not be evaluated."""
    return dict.fromkeys(COLUMNS) | {'recording': name, 'source': str(source),
                                     'warnings': [], 'error': str(error)}


def overview(rows: list[dict[str, Any]], mode: str, weights: str) -> dict[str, Any]:
    """
    Join the rows.

    `mean` is over the recordings, each counting alike; `worst` holds the worst value of each
    figure, and `worst_recording` the one with the largest error of the whole vector.
    """
    scored = [row for row in rows if row['rmse_rad_s_vector'] is not None]
    mean, worst = {}, {}
    for figure in FIGURES:
        values = [row[figure] for row in scored if row[figure] is not None]
        ideal = next((value for name, value in _IDEAL.items() if figure.startswith(name)), 0.0)
        mean[figure] = float(np.mean(values)) if values else None
        worst[figure] = max(values, key=lambda value: abs(value - ideal)) if values else None
    return {
        'mode': mode, 'weights': weights, 'recordings': rows, 'mean': mean, 'worst': worst,
        'worst_recording': max(scored, key=lambda row: row['rmse_rad_s_vector'])['recording']
        if scored else None}


def write_overview(content: dict[str, Any], folder: Path) -> None:
    """Write overview.json and overview.csv, in which mean and worst are the last two rows."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, allow_nan=False)
    write_atomically(folder / 'overview.json', f'{text}\n'.encode())
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator='\n')
    writer.writeheader()
    for row in content['recordings']:
        writer.writerow(row | {'warnings': '; '.join(row['warnings'])})
    for name in ('mean', 'worst'):
        writer.writerow({'recording': name, **content[name]})
    write_atomically(folder / 'overview.csv', buffer.getvalue().encode())


def overview_table(content: dict[str, Any]) -> str:
    """Lay out an overview as a text table: errors per axis and of the vector, rad/s."""
    rows = [*content['recordings'], {'recording': 'mean', **content['mean']},
            {'recording': 'worst', **content['worst']}]
    width = max(len(row['recording']) for row in rows)
    sign = 'RMSE' if content['mode'] == 'stream' else 'RMSE, oracle sign'
    lines = [f'{"":<{width}}  {"always zero x/y/z":>20}  {f"{sign} x/y/z":>23}{"vector":>9}'
             f'{"slope x/y/z":>18}{"signs":>8}{"95 %":>7}{"NEES":>7}{"frames":>12}']
    for row in rows:
        if row.get('error'):
            lines.append(f'{row["recording"]:<{width}}  {row["error"]}')
            continue
        frames = f'{row["evaluated"]}/{row["frames"]}' if 'frames' in row else ''
        lines.append(
            f'{row["recording"]:<{width}}  {_axes(row, "zero_rad_s"):>20}'
            f'  {_axes(row, "rmse_rad_s", 3):>23}{_text(row["rmse_rad_s_vector"], 3):>9}'
            f'{_axes(row, "slope"):>18}{_text(row["sign_accuracy"], 3):>8}'
            f'{_text(row["coverage_95"]):>7}{_text(row["nees_mean"], 1):>7}{frames:>12}')
    return '\n'.join(line.rstrip() for line in lines)


def _rmse(summary: dict[str, Any], protocol: str) -> list[float] | None:
    values = summary['protocols'][protocol]
    return values['rotation_rmse_rad_s' if summary['mode'] == 'stream'
                  else 'rotation_rmse_oracle_sign_rad_s']


def _axes(row: dict[str, Any], figure: str, digits: int = 2) -> str:
    return '/'.join(_text(row[f'{figure}_{axis}'], digits) for axis in _AXES)


def _text(value: float | None, digits: int = 2) -> str:
    return '-' if value is None else f'{value:.{digits}f}'
