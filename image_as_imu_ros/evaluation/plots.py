"""Plots of an evaluation; each gives a matplotlib figure that no window shows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import chi2, norm

from image_as_imu_ros.evaluation import metrics
from image_as_imu_ros.evaluation.estimation import StreamEstimates
from image_as_imu_ros.evaluation.evaluate import Evaluation, Samples, samples_of

AXES = ('x', 'y', 'z')
REFERENCE_COLOUR, ESTIMATE_COLOUR = '#222222', '#d1495b'
COLOURS = ('#d1495b', '#2e86ab', '#3b8b5f', '#e0a030', '#7a5195', '#8c6d46', '#5f7f8c', '#c06fb0')
DASHES = ('-', '--', '-.', ':')
DEGREES_OF_FREEDOM = 3


def png_of(figure: Figure) -> bytes:
    """Render a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110, metadata={'Software': None})
    return buffer.getvalue()


def angular_velocity(evaluation: Evaluation, result: StreamEstimates) -> Figure:
    """Plot one stream's estimates with their 95 % band over the reference, axis by axis."""
    recording = evaluation.recording
    samples = samples_of(recording, result, evaluation.mode)
    estimate = samples.signed(evaluation.mode)
    band = metrics.NORMAL_95 * np.sqrt(np.diagonal(samples.covariance, axis1=1, axis2=2))
    figure, rows, t_s = _over_time(evaluation, result, samples, estimate)
    for axis, axes in enumerate(rows):
        axes.fill_between(t_s, *(estimate[:, axis] + sign * band[:, axis] for sign in (-1, 1)),
                          color=ESTIMATE_COLOUR, alpha=0.25, linewidth=0, label='95 % band')
        axes.plot(t_s, estimate[:, axis], '.-', color=ESTIMATE_COLOUR, linewidth=1, markersize=4,
                  label='estimate from blur')
    rows[0].legend(loc='lower left', bbox_to_anchor=(0.0, 1.0), ncol=4, frameon=False)
    signs = 'own signs' if evaluation.mode == 'stream' else 'signs taken from the gyroscope'
    figure.suptitle(f'{recording.name}, {result.stream.camera}: angular velocity, {signs}')
    return figure


def rivals_over_time(evaluation: Evaluation,
                     rivals: Sequence[tuple[str, str, Samples]]) -> Figure:
    """
    Plot every method of the first stream over the reference.

    :param rivals: title, mode and samples of each
    """
    result = evaluation.streams[0]
    own = samples_of(evaluation.recording, result, evaluation.mode)
    figure, rows, t_s = _over_time(evaluation, result, own, own.signed(evaluation.mode))
    for number, (title, mode, samples) in enumerate(rivals):
        rates = samples.signed(mode)
        for axis, axes in enumerate(rows):
            axes.plot(t_s, rates[:, axis], linewidth=1.1, color=COLOURS[number % len(COLOURS)],
                      linestyle=DASHES[number // len(COLOURS) % len(DASHES)], label=title)
    rows[0].legend(loc='lower left', bbox_to_anchor=(0.0, 1.0), ncol=3, frameon=False,
                   fontsize='small')
    return figure


def gain(samples: Samples, mode: str) -> Figure:
    """Plot estimates, oracle-signed, against the reference."""
    figure = Figure(figsize=(10, 3.6), layout='constrained')
    reference = samples.angular_references_rad_s['interpolated']
    known = np.isfinite(reference).all(axis=1) & samples.has_estimate
    reference, estimate = reference[known], samples.angular_rad_s[known]
    estimate = estimate * metrics.oracle_signs(estimate, reference)
    for axis, axes in enumerate(figure.subplots(1, 3)):
        limit = 1.05 * max(np.abs(reference[:, axis]).max(initial=0.1),
                           np.abs(estimate[:, axis]).max(initial=0.1))
        axes.plot([-limit, limit], [-limit, limit], color=REFERENCE_COLOUR, linewidth=0.8)
        axes.plot(reference[:, axis], estimate[:, axis], '.', color=ESTIMATE_COLOUR, markersize=4)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect='equal',
                 xlabel=f'gyroscope {AXES[axis]} [rad/s]', ylabel='estimate [rad/s]')
        axes.grid(alpha=0.3)
    return figure


def error_over_speed(methods: Sequence[tuple[str, str, Samples]]) -> Figure:
    """
    Plot the vector's error at each speed: frames as dots of the first method, RMSE of all.

    :param methods: title, mode and samples of each; missing answers of a signed one count zero
    """
    figure = Figure(figsize=(10, 4.4), layout='constrained')
    axes = figure.subplots()
    top = 1.0
    for number, (title, mode, samples) in enumerate(methods):
        reference = samples.angular_references_rad_s['interpolated']
        rates = samples.signed(mode)
        if mode == 'stream':
            rates = np.where(samples.has_estimate[:, None], rates, 0.0)
        known = np.isfinite(reference).all(axis=1) & np.isfinite(rates).all(axis=1)
        speed = np.linalg.norm(reference[known], axis=1)
        error = np.linalg.norm((rates - reference)[known], axis=1)
        colour = COLOURS[number % len(COLOURS)]
        if number == 0:
            axes.plot(speed, error, '.', color=colour, alpha=0.35, markersize=5)
        bounds = metrics.SPEED_STRATA_RAD_S
        levels = [(speed[inside].mean(), np.sqrt(np.mean(error[inside] ** 2)))
                  for low, high in zip(bounds, bounds[1:])
                  if (inside := (speed >= low) & (speed < high)).any()]
        if levels:
            axes.plot(*zip(*levels), 'o-', color=colour, linewidth=1.5, markersize=4, label=title)
            top = max(top, speed.max())
    axes.plot([0, top], [0, top], color=REFERENCE_COLOUR, linewidth=0.8, linestyle=':',
              label='as large as the rate itself')
    axes.set(xlabel='speed by the gyroscope [rad/s]', ylabel='error of the vector [rad/s]',
             xlim=(0, None), ylim=(0, None))
    axes.legend(frameon=False, fontsize='small')
    axes.grid(alpha=0.3)
    return figure


def consistency(samples: Samples, mode: str) -> Figure:
    """Plot whether covariances are honest: NEES over time, and stated against actual coverage."""
    figure = Figure(figsize=(10, 3.8), layout='constrained')
    over_time, calibration = figure.subplots(
        1, 2, gridspec_kw={'width_ratios': (3, 2)})  # matplotlib 3.5 knows no width_ratios here
    reference = samples.angular_references_rad_s['interpolated']
    rows = (np.isfinite(reference).all(axis=1) & samples.has_estimate
            & np.isfinite(samples.covariance).all(axis=(1, 2)))
    error = (samples.signed(mode) - reference)[rows]
    covariance = samples.covariance[rows]
    nees = np.einsum('ni,ni->n', error, np.linalg.solve(covariance, error[..., None])[..., 0])
    t_s = (samples.stamp_ns[rows] - samples.stamp_ns.min()) * 1e-9
    over_time.plot(t_s, nees, '.', color=ESTIMATE_COLOUR, markersize=4)
    for share in (0.025, 0.975):
        over_time.axhline(chi2.ppf(share, DEGREES_OF_FREEDOM), color=REFERENCE_COLOUR,
                          linewidth=0.8, linestyle='--')
    over_time.axhline(DEGREES_OF_FREEDOM, color=REFERENCE_COLOUR, linewidth=0.8)
    over_time.set(xlabel='time [s]', ylabel='NEES of 3 axes', yscale='log',
                  title='mean 3 (line), 95 % between the dashes')
    stated = np.linspace(0.02, 0.98, 49)
    sigma = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    for axis in range(3):
        actual = [(np.abs(error[:, axis]) <= width * sigma[:, axis]).mean() if len(error) else 0.0
                  for width in norm.ppf(0.5 + stated / 2)]
        calibration.plot(stated, actual, color=COLOURS[axis], label=AXES[axis])
    calibration.plot([0, 1], [0, 1], color=REFERENCE_COLOUR, linewidth=0.8)
    calibration.set(xlabel='stated coverage', ylabel='share of errors inside', aspect='equal',
                    xlim=(0, 1), ylim=(0, 1))
    calibration.legend(frameon=False)
    for axes in (over_time, calibration):
        axes.grid(alpha=0.3)
    return figure


def allan_deviation(noise: dict[str, Any]) -> Figure:
    """Plot the Allan deviation of each resting gyroscope; the three axes are pooled."""
    figure = Figure(figsize=(10, 3.8), layout='constrained')
    axes = figure.subplots()
    for number, (name, entry) in enumerate(noise['noise'].items()):
        tau_s = np.array(entry['allan_deviation']['tau_s'])
        pooled = np.sqrt(np.mean(np.square(entry['allan_deviation']['rad_s']), axis=1))
        axes.loglog(tau_s, pooled, 'o-', markersize=4, linewidth=1.3, label=name,
                    color=REFERENCE_COLOUR if name == 'gyroscope' else COLOURS[
                        (number - 1) % len(COLOURS)])
    axes.set(xlabel='averaging time [s]', ylabel='Allan deviation [rad/s]')
    axes.legend(frameon=False)
    axes.grid(alpha=0.3, which='both')
    return figure


def _over_time(evaluation: Evaluation, result: StreamEstimates, samples: Samples,
               estimate: np.ndarray) -> tuple[Figure, Sequence[Axes], np.ndarray]:
    """Three plots with the reference, scaled to it and an estimate; also the frames' times, s."""
    origin_ns = samples.stamp_ns[0]
    t_s = (samples.stamp_ns - origin_ns) * 1e-9
    reference = samples.angular_references_rad_s['interpolated']
    recording = evaluation.recording
    gyroscope = recording.gyroscope if result.stream.R_gyro_camera is not None else None
    figure = Figure(figsize=(10, 7), layout='constrained')
    rows = figure.subplots(3, 1, sharex=True)
    for axis, axes in enumerate(rows):
        if gyroscope is not None:
            _plot_gyroscope(axes, (gyroscope.t_ns - origin_ns) * 1e-9,
                            gyroscope.angular_velocity_rad_s[:, axis], t_s)
        axes.plot(t_s, reference[:, axis], '.', color=REFERENCE_COLOUR, markersize=3,
                  label='gyroscope at the frames')
        axes.set_ylabel(f'{AXES[axis]} [rad/s]')
        axes.grid(alpha=0.3)
        known = np.concatenate([reference[:, axis], estimate[:, axis]])
        known = known[np.isfinite(known)]
        if known.size:
            margin = 0.1 * max(np.ptp(known), 0.5)
            axes.set_ylim(known.min() - margin, known.max() + margin)
    rows[-1].set_xlabel('time [s]')
    return figure, rows, t_s


def _plot_gyroscope(axes: Axes, t_s: np.ndarray, rate_rad_s: np.ndarray,
                    frames_t_s: np.ndarray) -> None:
    """Plot the gyroscope's own samples over the time of the frames."""
    inside = (t_s >= frames_t_s[0] - 0.1) & (t_s <= frames_t_s[-1] + 0.1)
    axes.plot(t_s[inside], rate_rad_s[inside], color=REFERENCE_COLOUR, linewidth=0.8, alpha=0.6,
              label='gyroscope')
