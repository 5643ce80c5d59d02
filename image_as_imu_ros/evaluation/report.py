"""Write an evaluation to a folder: summary.json, estimates.csv, plots and report.html."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
from matplotlib.figure import Figure

from image_as_imu_ros.config import EstimatorConfig
from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.evaluation import plots
from image_as_imu_ros.evaluation.comparison import Method, comparison_of
from image_as_imu_ros.evaluation.comparison_table import (
    COMPARED_PROTOCOLS,
    COMPARISON_HEADER,
    MARKS_EXPLAINED,
    comparison_rows,
    text_of,
)
from image_as_imu_ros.evaluation.contact_sheet import worst_frames
from image_as_imu_ros.evaluation.evaluate import Evaluation, pool, samples_of
from image_as_imu_ros.evaluation.gyroscope_noise import noise_at_rest
from image_as_imu_ros.evaluation.predictions import COVARIANCE_COLUMNS, UPPER
from image_as_imu_ros.evaluation.provenance import versions, weights_sha256
from image_as_imu_ros.files import write_atomically
from image_as_imu_ros.types import MotionEstimate

ESTIMATE_COLUMNS = (
    'timestamp_ns', 'exposure_time_s', 'wx', 'wy', 'wz', 'vx', 'vy', 'vz', *COVARIANCE_COLUMNS,
    'sign_resolved', 'quality', 'status', 'camera')
"""Columns of estimates.csv: camera optical axes, rad/s and m/s."""

_CAPTIONS = {
    'angular_velocity': 'Angular velocity over time', 'methods': 'All methods over time',
    'error_over_speed': 'Error at each speed', 'gain': 'Estimate against gyroscope',
    'consistency': 'Is the covariance honest?',
    'allan_deviation': 'Allan deviation at rest',
    'worst_frames': 'Frames with the largest errors: yellow by the estimate, white by the '
                    'gyroscope'}
_OWN_FILES = ('summary.json', 'estimates.csv', 'report.html', 'angular_velocity*.png',
              *(f'{name}.png' for name in _CAPTIONS))
_FACTS = ('source', 'kind', 'weights', 'image_size', 'frames', 'evaluated',
          'zero_rotation_rmse_rad_s', 'sign_accuracy', 'coverage_95', 'nees_mean',
          'time_offset_s', 'time_offset_applied_s', 'frame_ms', 'statuses', 'skipped',
          'assumptions', 'warnings')
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem;
  color: #222 }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.wide { overflow-x: auto; font-size: .85rem }
.wide th, .wide td { padding: .25rem .4rem }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums }
th { font-weight: 600; border-bottom: 2px solid #999 }
th, td { padding: .25rem .5rem; text-align: right; white-space: nowrap }
td { border-bottom: 1px solid #e3e3e3 }
th:first-child, td:first-child { text-align: left }
.facts td { white-space: normal; text-align: left; vertical-align: top }
.facts td:first-child { min-width: 12rem; color: #666 }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .85rem }
img { max-width: 100%; height: auto }
"""


def write_report(evaluation: Evaluation, folder: Path, weights: str, config: dict[str, Any],
                 methods: Sequence[Method] = (), command: str = '') -> dict[str, Any]:
    """
    Write all files of a report; those of an earlier report in the folder are replaced.

    :param weights: name or path of the weights that made the estimates
    :param config: the resolved settings, to be kept beside the figures
    :param methods: further ones to compare with
    :param command: that made the report
    :returns: the content of summary.json
    """
    summary = {**evaluation.metrics, 'weights': weights, 'config': config, 'command': command,
               'weights_sha256': weights_sha256(weights), 'versions': versions(),
               'gyroscope_noise': _noise(evaluation, methods)}
    if methods:
        summary['comparison'] = comparison_of(methods, evaluation.recording)
    pictures = {name: plots.png_of(figure)
                for name, figure in _figures(evaluation, summary, methods).items()}
    sheet = worst_frames(evaluation, config.get('estimator', {}).get(
        'scene_depth', EstimatorConfig().scene_depth))
    if sheet is not None:
        pictures['worst_frames.png'] = cv2.imencode('.png', sheet[..., ::-1])[1].tobytes()
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in _OWN_FILES:
        for stale in folder.glob(pattern):
            stale.unlink()
    for name, content in pictures.items():
        write_atomically(folder / name, content)
    write_atomically(folder / 'estimates.csv', _estimates_csv(evaluation).encode())
    write_atomically(folder / 'report.html', _html(evaluation, summary, pictures).encode())
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
    lines += [f'{name:<32}' + ''.join(f'{text_of(value):>8}' for value in values)
              for name, values in rows if values is not None]
    strata = summary['protocols']['interpolated']['oracle_sign_by_speed'] or []
    lines.append(f'{"oracle sign, by speed in rad/s":<32}{"RMSE":>8}{"relative":>10}{"slope":>8}'
                 f'{"v off by, deg":>15}{"frames":>8}')
    lines += [f'  {entry["from_rad_s"]:.0f} to {entry["to_rad_s"]:.0f}'.ljust(32)
              + f'{text_of(entry["rotation_rmse_rad_s"]):>8}{text_of(entry["relative"]):>10}'
              + f'{text_of(entry["rotation_slope"]):>8}'
              + f'{text_of(entry["translation_direction_deg"]):>15}{entry["frames"]:>8}'
              for entry in strata]
    figures = {key: summary[key] for key in (
        'frames', 'evaluated', 'sign_accuracy', 'coverage_95', 'nees_mean', 'time_offset_s')}
    lines.append('  '.join(f'{key} {text_of(value)}' for key, value in figures.items()))
    if summary['frame_ms']['p50'] is not None:
        lines.append('ms per frame  ' + '  '.join(
            f'{key} {value:.1f}' for key, value in summary['frame_ms'].items()))
    return '\n'.join(lines)


def _figures(evaluation: Evaluation, summary: dict[str, Any],
             methods: Sequence[Method]) -> dict[str, Figure]:
    """All plots by file name."""
    figures = {}
    for result in evaluation.streams:
        suffix = '' if len(evaluation.streams) == 1 else '_' + re.sub(
            r'[^A-Za-z0-9]+', '_', result.stream.camera).strip('_')
        figures[f'angular_velocity{suffix}.png'] = plots.angular_velocity(evaluation, result)
    own = pool([samples_of(evaluation.recording, result, evaluation.mode)
                for result in evaluation.streams])
    shown = [(method.title, method.mode, method) for method in methods if not method.failure]
    if shown:
        figures['methods.png'] = plots.rivals_over_time(evaluation, [
            (title, mode, method.parts[0]) for title, mode, method in shown
            if method.name != 'zero'])
    ours = [(f'ours, {evaluation.mode}', evaluation.mode, own)]
    others = [(title, mode, pool(method.parts)) for title, mode, method in shown
              if method.name != evaluation.mode]
    figures['error_over_speed.png'] = plots.error_over_speed(ours + others)
    figures['gain.png'] = plots.gain(own, evaluation.mode)
    figures['consistency.png'] = plots.consistency(own, evaluation.mode)
    if (summary['gyroscope_noise'] or {}).get('noise'):
        figures['allan_deviation.png'] = plots.allan_deviation(summary['gyroscope_noise'])
    return figures


def _noise(evaluation: Evaluation, methods: Sequence[Method]) -> dict[str, Any] | None:
    """Noise of reference and methods at rest; why not, where a library is missing."""
    if evaluation.recording.gyroscope is None or len(evaluation.streams) != 1:
        return None
    samples = {evaluation.mode: samples_of(evaluation.recording, evaluation.streams[0],
                                           evaluation.mode)}
    samples |= {method.name: method.parts[0] for method in methods
                if not method.failure and method.name != 'zero'}
    try:
        return noise_at_rest(evaluation.recording.gyroscope, samples)
    except ConfigError as error:
        return {'unavailable': str(error)}


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
               *(estimate.covariance[row, column] for row, column in UPPER)]
    return [estimate.stamp_ns, exposure, *(f'{value:.9g}' for value in numbers),
            int(estimate.sign_resolved), f'{estimate.quality:.6g}', estimate.status.name]


def _html(evaluation: Evaluation, summary: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """Self-contained page: the tables, what to know about them, and the plots."""
    title = f'{evaluation.recording.name}, {evaluation.mode}'
    comparison = summary.get('comparison')
    images = ''.join(
        f'<h2>{html.escape(_CAPTIONS.get(name.split(".")[0], name))}</h2>'
        f'<p><img alt="{html.escape(name)}" src="data:image/png;base64,'
        f'{base64.b64encode(content).decode()}"></p>' for name, content in pictures.items())
    facts = [key for key in _FACTS if key in summary]
    return (f'<!doctype html><html lang="en"><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}'
            f'</title><style>{_STYLE}</style><h1>{html.escape(title)}</h1>'
            + (_comparison_html(comparison) if comparison else '')
            + f'<h2>Scores of this package, mode {evaluation.mode}</h2>' + _scores_html(summary)
            + f'<h2>Facts</h2>{_facts_html({key: summary[key] for key in facts})}' + images
            + '<h2>Configuration and versions</h2>'
            + _facts_html({'command': summary['command'],
                           'weights sha256': summary['weights_sha256'], **summary['versions']})
            + f'<pre>{html.escape(json.dumps(summary["config"], indent=1))}</pre></html>\n')


def _scores_html(summary: dict[str, Any]) -> str:
    """Table of the figures of each protocol, with errors by speed below."""
    protocols = summary['protocols']
    head = ''.join(f'<th>{html.escape(protocol)} {axis}</th>'
                   for protocol in protocols for axis in plots.AXES)
    rows = ''.join(
        f'<tr><td>{name.replace("_", " ")}</td>' + ''.join(
            f'<td>{text_of(value)}</td>' for values in protocols.values()
            for value in (values[name] or [None] * 3)) + '</tr>'
        for name in next(iter(protocols.values())) if name != 'oracle_sign_by_speed')
    strata = protocols['interpolated']['oracle_sign_by_speed'] or []
    keys = list(strata[0]) if strata else []
    speeds = ''.join('<tr>' + ''.join(f'<td>{text_of(entry[key])}</td>' for key in keys) + '</tr>'
                     for entry in strata)
    header = ''.join(f'<th>{key.replace("_", " ")}</th>' for key in keys)
    return (f'<table><tr><th>rad/s, m/s</th>{head}</tr>{rows}</table>'
            f'<table><tr>{header}</tr>{speeds}</table>')


def _facts_html(facts: dict[str, Any]) -> str:
    """Table of names and values."""
    rows = ''.join(f'<tr><td>{html.escape(key.replace("_", " "))}</td>'
                   f'<td>{html.escape(text_of(value))}</td></tr>' for key, value in facts.items())
    return f'<table class="facts">{rows}</table>'


def _comparison_html(comparison: dict[str, Any]) -> str:
    """Tables of all methods, one for each protocol, and the published figures."""
    parts = ['<h2>Methods on the same recording</h2>']
    for protocol in COMPARED_PROTOCOLS:
        header = ''.join(f'<th>{name}</th>' for name in COMPARISON_HEADER)
        rows = ''.join('<tr>' + ''.join(f'<td>{html.escape(cell)}</td>' for cell in row) + '</tr>'
                       for row in comparison_rows(comparison, protocol))
        parts.append(f'<p><b>{protocol}</b>: {html.escape(comparison["protocols"][protocol])}. '
                     f'RMSE in rad/s, x y z in gyroscope axes; 95 % intervals by a block '
                     f'bootstrap over time.</p><div class="wide"><table><tr>{header}</tr>{rows}'
                     '</table></div>')
    remarks = {method['title']: method['failure'] or method['remark']
               for method in comparison['methods'].values()}
    parts.append(f'<p>{MARKS_EXPLAINED}.</p>')
    parts.append(_facts_html({name: remark for name, remark in remarks.items() if remark}))
    published = comparison['published']
    if published:
        parts.append(f'<p>Published, not run here: {html.escape(published["source"])}</p>'
                     + _facts_html({name: 'failed' if values is None
                                    else ', '.join(f'{value:.2f}' for value in values)
                                    for name, values in published['rotation_rmse_rad_s'].items()}))
    return ''.join(parts)
