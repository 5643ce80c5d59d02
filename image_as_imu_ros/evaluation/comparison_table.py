"""Methods side by side, as rows of text for the terminal and the report."""

from __future__ import annotations

from typing import Any

from image_as_imu_ros.evaluation.comparison import ORACLE, ORACLE_PER_AXIS, OWN, PUBLISHED

COMPARED_PROTOCOLS = (PUBLISHED, 'interpolated')
COMPARISON_HEADER = ('method', 'x', 'y', 'z', 'vector', '95 %', 'slope x', 'y', 'z', 'sign right',
                     'coverage', 'NEES', 'answers', 'ms/frame')
_MARKS = {OWN: '', ORACLE: ' *', ORACLE_PER_AXIS: ' **'}
MARKS_EXPLAINED = '* sign of each frame, ** of each axis of each frame, from the gyroscope'
_WIDTHS = (42, 7, 7, 7, 8, 14, 9, 6, 6, 12, 10, 8, 9, 10)


def comparison_rows(comparison: dict[str, Any], protocol: str) -> list[list[str]]:
    """
    Lay out the figures of all methods under a protocol, as COMPARISON_HEADER names them.

    Errors of a method whose signs the gyroscope chose are marked in its name; a method that
    failed has dashes.
    """
    return [_row(method, protocol) for method in comparison['methods'].values()]


def comparison_table(comparison: dict[str, Any]) -> str:
    """Lay out the main figures of a comparison as a text table."""
    lines = []
    for protocol in COMPARED_PROTOCOLS:
        lines.append(f'protocol {protocol}, RMSE in rad/s: {comparison["protocols"][protocol]}')
        for row in (list(COMPARISON_HEADER), *comparison_rows(comparison, protocol)):
            lines.append((row[0].ljust(_WIDTHS[0]) + ''.join(
                cell.rjust(width) for cell, width in zip(row[1:], _WIDTHS[1:]))).rstrip())
        lines.append('')
    lines.append(MARKS_EXPLAINED)
    for method in comparison['methods'].values():
        remark = f'failed: {method["failure"]}' if method['failure'] else method['remark']
        if remark:
            lines.append(f'{method["title"]}: {remark}')
    if comparison['published']:
        lines.append(f'published: {comparison["published"]["source"]}')
        lines += [f'  {name:<40}' + ('failed' if values is None else ''.join(
            f'{value:7.2f}' for value in values))
            for name, values in comparison['published']['rotation_rmse_rad_s'].items()]
    return '\n'.join(lines)


def _row(method: dict[str, Any], protocol: str) -> list[str]:
    if method['failure']:
        return [f'{method["title"]}: failed', *['-'] * (len(COMPARISON_HEADER) - 1)]
    values = method['protocols'][protocol]
    oracle = method['signs'] == ORACLE
    rmse = values['rotation_rmse_oracle_sign_rad_s' if oracle else 'rotation_rmse_rad_s'] \
        or [None] * 3
    interval = values['rotation_rmse_vector_95_rad_s']
    times = method['ms_per_frame'] or {}
    return [
        f'{method["title"]}{_MARKS[method["signs"]]}',
        *(_short(value) for value in rmse), _short(values['rotation_rmse_vector_rad_s']),
        '-' if interval is None else ' to '.join(map(_short, interval)),
        *(_short(value) for value in values['rotation_slope'] or [None] * 3),
        _short(method['sign_accuracy']), _short(method['coverage_95']),
        _short(method['nees_mean']), f'{values["answered"]}/{values["frames"]}',
        _short(times.get('p50', times.get('mean')), 1)]


def _short(value: float | None, digits: int = 2) -> str:
    return '-' if value is None else f'{value:.{digits}f}'


def text_of(value: Any) -> str:
    """Short text of a figure; a dash for a missing one."""
    if value is None:
        return '-'
    if isinstance(value, float):
        return f'{value:.3f}' if abs(value) < 100 else f'{value:.4g}'
    if isinstance(value, list):
        return ', '.join(map(text_of, value)) or '-'
    if isinstance(value, dict):
        return ', '.join(f'{key} {text_of(entry)}' for key, entry in value.items()) or '-'
    return str(value)

