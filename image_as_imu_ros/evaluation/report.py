"""Write an evaluation to a folder: summary.json, estimates.csv, plots and report.html."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from image_as_imu_ros.evaluation import metrics
from image_as_imu_ros.evaluation.evaluate import Evaluation, StreamEstimates, samples_of
from image_as_imu_ros.types import MotionEstimate

_AXES = ('x', 'y', 'z')
_COMPONENTS = ('vx', 'vy', 'vz', 'wx', 'wy', 'wz')
_UPPER = tuple((row, column) for row in range(6) for column in range(row, 6))
ESTIMATE_COLUMNS = (
    'timestamp_ns', 'exposure_time_s', 'wx', 'wy', 'wz', 'vx', 'vy', 'vz',
    *(f'cov_{_COMPONENTS[row]}_{_COMPONENTS[column]}' for row, column in _UPPER),
    'sign_resolved', 'quality', 'status', 'camera')
"""Columns of estimates.csv: camera optical axes, rad/s and m/s."""

_OWN_FILES = ('summary.json', 'estimates.csv', 'report.html', 'gain.png', 'angular_velocity*.png')
_REFERENCE_COLOUR, _ESTIMATE_COLOUR = '#222222', '#d1495b'
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left }
img { max-width: 100%; height: auto }
"""


def write_report(evaluation: Evaluation, folder: Path, weights: str,
                 config: dict[str, Any]) -> dict[str, Any]:
    """
    Write all files of a report; those of an earlier report in the folder are replaced.

    :param weights: name or path of the weights that made the estimates
    :param config: the resolved settings, to be kept beside the figures
    :returns: the content of summary.json
    """
    summary = {**evaluation.metrics, 'weights': weights, 'config': config}
    plots = {name: png_of(figure) for name, figure in _figures(evaluation).items()}
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in _OWN_FILES:
        for stale in folder.glob(pattern):
            stale.unlink()
    for name, content in plots.items():
        write_atomically(folder / name, content)
    write_atomically(folder / 'estimates.csv', _estimates_csv(evaluation).encode())
    write_atomically(folder / 'report.html', _html(evaluation, summary, plots).encode())
    text = json.dumps(summary, indent=2, allow_nan=False)
    write_atomically(folder / 'summary.json', f'{text}\n'.encode())
    return summary


def table_of(summary: dict[str, Any]) -> str:
    """Lay out the main figures of a summary as a text table."""
    lines = [f'{"rad/s":<32}{"x":>8}{"y":>8}{"z":>8}']
    rows = [('always zero', summary['zero_rotation_rmse_rad_s'])]
    for protocol, values in summary['protocols'].items():
        rows += [(f'{protocol}: RMSE', values['rotation_rmse_rad_s']),
                 (f'{protocol}: RMSE, oracle sign', values['rotation_rmse_oracle_sign_rad_s']),
                 (f'{protocol}: slope', values['rotation_slope'])]
    lines += [f'{name:<32}' + ''.join(f'{_text(value):>8}' for value in values)
              for name, values in rows if values is not None]
    strata = summary['protocols']['interpolated']['oracle_sign_by_speed'] or []
    lines.append(f'{"oracle sign, by speed in rad/s":<32}{"RMSE":>8}{"relative":>10}{"slope":>8}'
                 f'{"v off by, deg":>15}{"frames":>8}')
    lines += [f'  {entry["from_rad_s"]:.0f} to {entry["to_rad_s"]:.0f}'.ljust(32)
              + f'{_text(entry["rotation_rmse_rad_s"]):>8}{_text(entry["relative"]):>10}'
              + f'{_text(entry["rotation_slope"]):>8}'
              + f'{_text(entry["translation_direction_deg"]):>15}{entry["frames"]:>8}'
              for entry in strata]
    figures = {key: summary[key] for key in (
        'frames', 'evaluated', 'sign_accuracy', 'coverage_95', 'nees_mean', 'time_offset_s')}
    lines.append('  '.join(f'{key} {_text(value)}' for key, value in figures.items()))
    if summary['frame_ms']['p50'] is not None:
        lines.append('ms per frame  ' + '  '.join(
            f'{key} {value:.1f}' for key, value in summary['frame_ms'].items()))
    return '\n'.join(lines)


def plot_angular_velocity(evaluation: Evaluation, result: StreamEstimates) -> Figure:
    """Plot one stream's estimates with their 95 % band over the reference, axis by axis."""
    recording = evaluation.recording
    samples = samples_of(recording, result, evaluation.mode)
    reference = samples.angular_references_rad_s['interpolated']
    estimate = samples.angular_rad_s
    if evaluation.mode == 'single':
        estimate = estimate * metrics.oracle_signs(estimate, np.nan_to_num(reference))
    band = metrics.NORMAL_95 * np.sqrt(np.diagonal(samples.covariance, axis1=1, axis2=2))
    origin_ns = samples.stamp_ns[0]
    t_s = (samples.stamp_ns - origin_ns) * 1e-9
    gyroscope = recording.gyroscope if result.stream.R_gyro_camera is not None else None

    figure = Figure(figsize=(10, 7), layout='constrained')
    rows = figure.subplots(3, 1, sharex=True)
    for axis, axes in enumerate(rows):
        if gyroscope is not None:
            _plot_gyroscope(axes, (gyroscope.t_ns - origin_ns) * 1e-9,
                            gyroscope.angular_velocity_rad_s[:, axis], t_s)
        axes.plot(t_s, reference[:, axis], '.', color=_REFERENCE_COLOUR, markersize=3,
                  label='gyroscope at the frames')
        axes.fill_between(t_s, *(estimate[:, axis] + sign * band[:, axis] for sign in (-1, 1)),
                          color=_ESTIMATE_COLOUR, alpha=0.25, linewidth=0, label='95 % band')
        axes.plot(t_s, estimate[:, axis], '.-', color=_ESTIMATE_COLOUR, linewidth=1, markersize=4,
                  label='estimate from blur')
        axes.set_ylabel(f'{_AXES[axis]} [rad/s]')
        axes.grid(alpha=0.3)
        known = np.concatenate([reference[:, axis], estimate[:, axis]])
        known = known[np.isfinite(known)]
        if known.size:
            margin = 0.1 * max(np.ptp(known), 0.5)
            axes.set_ylim(known.min() - margin, known.max() + margin)
    rows[0].legend(loc='lower left', bbox_to_anchor=(0.0, 1.0), ncol=4, frameon=False)
    rows[-1].set_xlabel('time [s]')
    signs = 'own signs' if evaluation.mode == 'stream' else 'signs taken from the gyroscope'
    figure.suptitle(f'{recording.name}, {result.stream.camera}: angular velocity, {signs}')
    return figure


def png_of(figure: Figure) -> bytes:
    """Render a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110, metadata={'Software': None})
    return buffer.getvalue()


def _plot_gyroscope(axes: Axes, t_s: np.ndarray, rate_rad_s: np.ndarray,
                    frames_t_s: np.ndarray) -> None:
    """Plot the gyroscope's own samples over the time of the frames."""
    inside = (t_s >= frames_t_s[0] - 0.1) & (t_s <= frames_t_s[-1] + 0.1)
    axes.plot(t_s[inside], rate_rad_s[inside], color=_REFERENCE_COLOUR, linewidth=0.8, alpha=0.6,
              label='gyroscope')


def _plot_gain(evaluation: Evaluation) -> Figure:
    """Plot oracle-signed estimates of all streams against the reference."""
    figure = Figure(figsize=(10, 3.6), layout='constrained')
    all_samples = [samples_of(evaluation.recording, result, evaluation.mode)
                   for result in evaluation.streams]
    reference = np.concatenate([s.angular_references_rad_s['interpolated'] for s in all_samples])
    estimate = np.concatenate([samples.angular_rad_s for samples in all_samples])
    known = np.isfinite(reference).all(axis=1) & np.isfinite(estimate).all(axis=1)
    reference, estimate = reference[known], estimate[known]
    estimate = estimate * metrics.oracle_signs(estimate, reference)
    for axis, axes in enumerate(figure.subplots(1, 3)):
        limit = 1.05 * max(np.abs(reference[:, axis]).max(initial=0.1),
                           np.abs(estimate[:, axis]).max(initial=0.1))
        axes.plot([-limit, limit], [-limit, limit], color=_REFERENCE_COLOUR, linewidth=0.8)
        axes.plot(reference[:, axis], estimate[:, axis], '.', color=_ESTIMATE_COLOUR, markersize=4)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect='equal',
                 xlabel=f'gyroscope {_AXES[axis]} [rad/s]', ylabel='estimate [rad/s]')
        axes.grid(alpha=0.3)
    return figure


def _figures(evaluation: Evaluation) -> dict[str, Figure]:
    """All plots by file name."""
    figures = {}
    for result in evaluation.streams:
        suffix = '' if len(evaluation.streams) == 1 else '_' + re.sub(
            r'[^A-Za-z0-9]+', '_', result.stream.camera).strip('_')
        figures[f'angular_velocity{suffix}.png'] = plot_angular_velocity(evaluation, result)
    figures['gain.png'] = _plot_gain(evaluation)
    return figures


def _estimates_csv(evaluation: Evaluation) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator='\n')
    writer.writerow(ESTIMATE_COLUMNS)
    for result in evaluation.streams:
        for estimate in result.estimates:
            if estimate is not None:
                writer.writerow([*estimate_row(estimate), result.stream.camera])
    return buffer.getvalue()


def estimate_row(estimate: MotionEstimate) -> list[Any]:
    """One line of estimates.csv, but for the camera."""
    exposure = '' if estimate.exposure_time_s is None else f'{estimate.exposure_time_s:.9g}'
    numbers = [*estimate.angular_velocity_rad_s, *estimate.linear_velocity_m_s,
               *(estimate.covariance[row, column] for row, column in _UPPER)]
    return [estimate.stamp_ns, exposure, *(f'{value:.9g}' for value in numbers),
            int(estimate.sign_resolved), f'{estimate.quality:.6g}', estimate.status.name]


def _html(evaluation: Evaluation, summary: dict[str, Any], plots: dict[str, bytes]) -> str:
    """Self-contained page: the table, what to know about it, and the plots."""
    title = f'{evaluation.recording.name}, {evaluation.mode}'
    protocols = summary['protocols']
    head = ''.join(f'<th>{html.escape(protocol)} {axis}</th>'
                   for protocol in protocols for axis in _AXES)
    rows = ''.join(
        f'<tr><td>{name.replace("_", " ")}</td>' + ''.join(
            f'<td>{_text(value)}</td>' for values in protocols.values()
            for value in (values[name] or [None] * 3)) + '</tr>'
        for name in next(iter(protocols.values())))
    facts = ''.join(
        f'<tr><td>{key.replace("_", " ")}</td><td>{html.escape(_text(summary[key]))}</td></tr>'
        for key in ('source', 'kind', 'weights', 'image_size', 'frames', 'evaluated',
                    'zero_rotation_rmse_rad_s', 'sign_accuracy', 'coverage_95', 'nees_mean',
                    'time_offset_s', 'time_offset_applied_s', 'frame_ms', 'statuses', 'skipped',
                    'assumptions', 'warnings'))
    images = ''.join(
        f'<p><img alt="{html.escape(name)}" '
        f'src="data:image/png;base64,{base64.b64encode(content).decode()}"></p>'
        for name, content in plots.items())
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}'
            f'</title><style>{_STYLE}</style><h1>{html.escape(title)}</h1>'
            f'<table><tr><th></th>{head}</tr>{rows}</table><table>{facts}</table>'
            f'{images}</html>\n')


def _text(value: Any) -> str:
    """Short text of a figure; a dash for a missing one."""
    if value is None:
        return '-'
    if isinstance(value, float):
        return f'{value:.3f}' if abs(value) < 100 else f'{value:.4g}'
    if isinstance(value, list):
        return ', '.join(map(_text, value)) or '-'
    if isinstance(value, dict):
        return ', '.join(f'{key} {_text(entry)}' for key, entry in value.items()) or '-'
    return str(value)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is either the old one or the whole new one."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.part')
    temporary.write_bytes(content)
    os.replace(temporary, path)
