"""
Fault suite of the node `visual_imu`, a process of its own, over real DDS.

    python test/soak.py --messages 100000 --frames 864000 --kills 20 --output soak.json

Fuzzed messages, jumps of time, stalls and bursts, kills of camera and node, then frames as fast as
the machine allows. Whatever the node publishes is checked: finite, with a positive covariance, for
an image that was sent a moment ago. The exit status is 0 if nothing was wrong.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import json
import math
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistWithCovarianceStamped
from image_as_imu_ros.msg import ExposureTime, MotionEstimate
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParameters
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Imu
from tqdm import tqdm

from image_as_imu_ros.evaluation.benchmark import machine
from image_as_imu_ros.files import write_atomically
from image_as_imu_ros.image_decoding import ENCODINGS
from image_as_imu_ros.ros.conversions import ns_to_stamp, stamp_to_ns
from image_as_imu_ros.ros.simulated_camera import Pan, SimulatedCamera

CHECKOUT = Path(__file__).resolve().parents[1]
PAN = Pan(96, 72, frames=24, encoding='mono8')
INTERVAL_NS = round(PAN.interval_s * 1e9)
START_NS = 1_700_000_000_000_000_000

START_LIMIT_S = 180.0
RECOVERY_LIMIT_S = 1.0
"""From the first good image after a fault to the next Imu message."""
GIVE_UP_S = 20.0
"""A recovery that takes longer is counted as none."""
STALE_S = 1.0
"""Answers to images that were sent so long before the node began to work on them are stale."""
MEMORY_LIMIT = 0.02
"""Change of the resident memory over the accelerated frames, relative."""
FUZZ_RATE_HZ = 500.0
ARRIVING_SHARE = 0.9
LEAST_RATE_HZ = 300.0
"""Frames come faster as long as this share of them reaches the node, and never more slowly."""
MESSAGES_PER_RECOVERY = 1000
COMPRESSED_SHARE = 0.2
NODE_ARGUMENTS = {
    'autostart': 'true', 'use_exposure_topic': 'true', 'stamp_reference': 'middle',
    'max_latency': '0.0', 'stream.max_gap': '10.0', 'estimator.threads': '1',
    'estimator.device': 'cpu', 'diagnostics_period': '0.5'}


@dataclass(frozen=True)
class Plan:
    """How much of each fault."""

    messages: int = 100_000
    jumps: int = 200
    bursts: int = 20
    kills: int = 20
    frames: int = 864_000
    frame_minutes: float = math.inf
    seed: int = 1

    @property
    def recoveries(self) -> int:
        """How many recoveries the plan measures."""
        return (max(1, self.messages // MESSAGES_PER_RECOVERY) + self.jumps + self.bursts
                + 2 * self.kills)


@dataclass
class Result:
    """What happened, and every violation found."""

    counts: Counter = field(default_factory=Counter)
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    start_s: list[float] = field(default_factory=list)
    discovery_s: list[float] = field(default_factory=list)
    """From the start of a camera's process until Fast DDS has matched it with the node."""
    memory_mib: list[float] = field(default_factory=list)
    drops: Counter = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def violated(self, what: str) -> None:
        """Note something that must not happen."""
        self.violations.append(what)

    def summary(self, plan: Plan) -> dict[str, Any]:
        """All of it, for a file."""
        recovery = {name: {'count': len(values), 'p50_s': round(float(np.median(values)), 3),
                           'worst_s': round(max(values), 3)}
                    for name, values in self.recovery_s.items() if values}
        return {
            'passed': not self.violations, 'violations': self.violations[:50],
            'violation_count': len(self.violations), 'plan': asdict(plan),
            'machine': machine('cpu'), 'load_average': os.getloadavg(),
            'counts': dict(self.counts), 'drops': dict(self.drops), 'recovery': recovery,
            'start_s': [round(value, 1) for value in self.start_s],
            'discovery_s': [round(value, 1) for value in self.discovery_s],
            'memory': memory_summary(self.memory_mib)}


def memory_summary(samples_mib: list[float]) -> dict[str, float]:
    """Medians of the second and the last tenth of the samples, MiB, and the relative change."""
    tenth = len(samples_mib) // 10
    if not tenth:
        return {}
    early, late = (float(np.median(part))
                   for part in (samples_mib[tenth:2 * tenth], samples_mib[-tenth:]))
    return {'samples': len(samples_mib), 'early_mib': round(early, 1), 'late_mib': round(late, 1),
            'peak_mib': round(max(samples_mib), 1), 'change': round(late / early - 1, 4)}


class Witness(Node):
    """Receives all that the node publishes and checks it."""

    def __init__(self, result: Result) -> None:
        super().__init__('witness')
        self._result = result
        self._changed = threading.Condition()
        self._sent_s: dict[int, float] = {}
        self._newest_sent_s: dict[str, float] = {}
        self.live = False
        """Whether stamps are of the wall clock, from a camera that is another process."""
        self.answers = 0
        """Imu messages so far."""
        self.values: dict[str, str] = {}
        """Newest diagnostics."""
        for topic, kind in (('imu/data_raw', Imu), ('twist', TwistWithCovarianceStamped),
                            ('motion', MotionEstimate)):
            self.create_subscription(kind, f'visual_imu/{topic}',
                                     lambda msg, topic=topic: self._check(topic, msg), 50)
        self.create_subscription(DiagnosticArray, '/diagnostics', self._keep_diagnostics, 10)
        self._state_client = self.create_client(ChangeState, 'visual_imu/change_state')
        self._parameter_client = self.create_client(SetParameters, 'visual_imu/set_parameters')

    def sent(self, stamp_ns: int) -> None:
        """Remember that an image of this stamp is on its way."""
        now_s = time.monotonic()
        with self._changed:
            self._sent_s.pop(stamp_ns, None)  # one that is sent again is the newest
            self._sent_s[stamp_ns] = now_s
            while len(self._sent_s) > 50_000:
                del self._sent_s[next(iter(self._sent_s))]

    def wait(self, condition: Callable[[], Any], limit_s: float) -> bool:
        """Whether the condition came true in time."""
        with self._changed:
            return bool(self._changed.wait_for(condition, limit_s))

    def call(self, client: Any, request: Any) -> Any:
        """Response of a service of the node."""
        if not client.wait_for_service(GIVE_UP_S):
            return None
        future = client.call_async(request)
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        return future.result() if done.wait(GIVE_UP_S) else None

    def change_state(self, transition: int) -> bool:
        """Ask for a transition."""
        answer = self.call(self._state_client,
                           ChangeState.Request(transition=Transition(id=transition)))
        return answer is not None and answer.success

    def set_parameter(self, name: str, value: Any) -> bool:
        """Ask for a new value."""
        answer = self.call(self._parameter_client, SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]))
        return answer is not None and answer.results[0].successful

    def _keep_diagnostics(self, msg: DiagnosticArray) -> None:
        with self._changed:
            self.values = {pair.key: pair.value for pair in msg.status[0].values}
            self._changed.notify_all()

    def _check(self, topic: str, msg: Any) -> None:
        stamp_ns, now_s = stamp_to_ns(msg.header.stamp), time.monotonic()
        fault = self._fault_of_numbers(topic, msg)
        if not msg.header.frame_id:
            fault = fault or 'without frame_id'
        with self._changed:
            self._result.counts[topic] += 1
            sent_s = self._sent_s.get(stamp_ns, -math.inf)
            if self.live:
                sent_s = now_s - (time.time() - stamp_ns * 1e-9)
            working_s = msg.processing_latency if topic == 'motion' else GIVE_UP_S
            if now_s - sent_s > STALE_S + working_s:
                fault = fault or (f'stale: sent {now_s - sent_s:.1f} s ago (inf: never), '
                                  f'of which at work {working_s:.1f} s')
            if sent_s < self._newest_sent_s.get(topic, -math.inf):
                fault = fault or 'its image was sent before that of the last message'
            self._newest_sent_s[topic] = sent_s
            self.answers += topic == 'imu/data_raw'
            self._changed.notify_all()
        if fault is not None:
            self._result.violated(f'{topic} at {stamp_ns}: {fault}')

    @staticmethod
    def _fault_of_numbers(topic: str, msg: Any) -> str | None:
        if topic == 'imu/data_raw':
            vectors, covariance = [msg.angular_velocity], msg.angular_velocity_covariance
        elif topic == 'twist':
            vectors = [msg.twist.twist.angular, msg.twist.twist.linear]
            covariance = msg.twist.covariance
        else:
            vectors, covariance = [msg.angular_velocity, msg.linear_velocity], msg.covariance
        numbers = [value for vector in vectors for value in (vector.x, vector.y, vector.z)]
        if not np.isfinite([*numbers, *covariance]).all():
            return 'not finite'
        side = math.isqrt(len(covariance))
        if np.linalg.eigvalsh(np.reshape(covariance, (side, side))).min() <= 0.0:
            return 'covariance is not positive'
        return None


class NodeProcess:
    """The node under test."""

    def __init__(self, log: Path) -> None:
        self._log = log
        arguments = [word for name, value in NODE_ARGUMENTS.items()
                     for word in ('-p', f'{name}:={value}')]
        with log.open('a') as output:
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'image_as_imu_ros.ros.node', '--ros-args', *arguments],
                cwd=CHECKOUT, stdout=output, stderr=output)

    def memory_mib(self) -> float:
        """Resident memory."""
        pages = int(Path(f'/proc/{self.process.pid}/statm').read_text().split()[1])
        return pages * os.sysconf('SC_PAGE_SIZE') / 2 ** 20

    def wait_until_active(self, camera: SimulatedCamera) -> float:
        """Time until the node listens to the camera, s."""
        begin_s = time.monotonic()
        while camera.publishers_without_listener():
            if self.process.poll() is not None:
                raise RuntimeError(f'the node ended: {self._log.read_text()[-2000:]}')
            if time.monotonic() - begin_s > START_LIMIT_S:
                raise RuntimeError(f'the node does not start: {self._log.read_text()[-2000:]}')
            time.sleep(0.01)
        return time.monotonic() - begin_s

    def stop(self, number: int = signal.SIGINT) -> int:
        """Signal the process and tell its exit status."""
        self.process.send_signal(number)
        try:
            return self.process.wait(10.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Soak:
    """One run of a plan."""

    def __init__(self, plan: Plan, log: Path) -> None:
        self.plan, self.result, self._log = plan, Result(), log
        self._random = random.Random(plan.seed)
        self._bytes = np.random.default_rng(plan.seed)
        self._index, self._stamp_ns = 0, START_NS
        self._jpeg = [cv2.imencode(suffix, image)[1].tobytes()
                      for suffix, image in zip(('.jpg', '.png') * 12, PAN.images)]

    def run(self) -> Result:
        """Torment the node."""
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self._camera = SimulatedCamera(PAN)
        self._compressed_publisher = self._camera.create_publisher(
            CompressedImage, 'image/compressed', 10)
        self._witness = Witness(self.result)
        executor = SingleThreadedExecutor()
        for node in (self._camera, self._witness):
            executor.add_node(node)

        def spin() -> None:
            with contextlib.suppress(ExternalShutdownException):
                executor.spin()
        thread = threading.Thread(target=spin)
        thread.start()
        self._start_node()
        try:
            for phase in (self._fuzz, self._jump, self._stall_and_burst, self._kill,
                          self._accelerate):
                phase()
        except KeyboardInterrupt:
            self.result.violated('interrupted before the end')
        finally:
            self._remember_totals()
            status = self._node.stop()
            if status:
                self.result.violated(f'the node ended with status {status}')
            if 'Traceback' in self._log.read_text():
                self.result.violated(f'a traceback in {self._log}')
            rclpy.try_shutdown()
            thread.join()
        return self.result

    def _start_node(self) -> None:
        self._node = NodeProcess(self._log)
        self.result.start_s.append(self._node.wait_until_active(self._camera))

    def _remember_totals(self) -> None:
        """Take the node's own counts before it ends."""
        time.sleep(1.2)  # two periods of its diagnostics
        for key, value in self._witness.values.items():
            if key.startswith('dropped: ') and value != '0':
                self.result.drops[key.removeprefix('dropped: ')] += int(value)
            elif key.startswith('images '):
                self.result.counts[key] += int(value)
        for cause in ('internal error', 'estimate not finite'):
            if self.result.drops[cause]:
                self.result.violated(f'{self.result.drops[cause]} images dropped by {cause}')

    def _alive(self) -> bool:
        """Whether the node still runs; if not, it is a crash, and it is started again."""
        status = self._node.process.poll()
        if status is None:
            return True
        self.result.violated(f'crash: the node ended with status {status}')
        self._start_node()
        return False

    # Good frames

    def _shoot(self, stamp_ns: int | None = None) -> None:
        """Publish the next good frame; stamps go on from the last one."""
        self._stamp_ns = self._stamp_ns + INTERVAL_NS if stamp_ns is None else stamp_ns
        self._index += 1
        self._witness.sent(self._stamp_ns)
        self._camera.shoot(self._index, self._stamp_ns)

    def _recover(self, cause: str, shoot: Callable[[], None] | None = None) -> None:
        """Publish good frames at 30 Hz until the node answers; the second Imu counts."""
        self._alive()
        begin_s, before = time.monotonic(), self._witness.answers
        while time.monotonic() - begin_s < GIVE_UP_S:
            (shoot or self._shoot)()
            if self._witness.wait(lambda: self._witness.answers > before, PAN.interval_s):
                break
        self._note_recovery(cause, time.monotonic() - begin_s)

    def _note_recovery(self, cause: str, took_s: float) -> None:
        self.result.recovery_s.setdefault(cause, []).append(took_s)
        if took_s > RECOVERY_LIMIT_S:
            self.result.violated(f'recovery from {cause} took {took_s:.2f} s')

    # Faults

    def _fuzz(self) -> None:
        raw = round(self.plan.messages * (1 - COMPRESSED_SHARE))
        with progress('fuzzed messages', self.plan.messages) as bar:
            self._fuzz_messages(raw, self._spoilt_image, self._camera.image_publisher, bar)
            self._recover('fuzz')
            if not self._with_transport('compressed'):
                self.result.violated('compressed images could not be switched on')
            compressed = self.plan.messages - raw
            self._fuzz_messages(compressed, self._spoilt_compressed, self._compressed_publisher,
                                bar)
            if not self._with_transport('raw'):
                self.result.violated('raw images could not be switched on')
            self._node.wait_until_active(self._camera)
            self._recover('fuzz')

    def _with_transport(self, transport: str) -> bool:
        """Change the parameter while the node is inactive."""
        witness = self._witness
        return (witness.change_state(Transition.TRANSITION_DEACTIVATE)
                and witness.set_parameter('image_transport', transport)
                and witness.change_state(Transition.TRANSITION_ACTIVATE))

    def _fuzz_messages(self, count: int, spoilt_image: Callable[[], Any], image_publisher: Any,
                       bar: tqdm) -> None:
        """Publish spoilt messages, with good frames among them."""
        begin_s = time.monotonic()
        for number in range(count):
            kind = self._random.choices(('image', 'info', 'exposure'), (4, 3, 3))[0]
            self._stamp_ns += INTERVAL_NS
            publisher, msg = {
                'image': lambda: (image_publisher, spoilt_image()),
                'info': lambda: (self._camera.info_publisher, self._spoilt_info()),
                'exposure': lambda: (self._camera.exposure_publisher, self._spoilt_exposure()),
            }[kind]()
            if kind == 'image':
                self._witness.sent(stamp_to_ns(msg.header.stamp))
            publisher.publish(self._spoilt_bytes(msg) if self._random.random() < 0.1 else msg)
            self.result.counts[f'fuzzed {kind}'] += 1
            bar.update()
            if number % MESSAGES_PER_RECOVERY == MESSAGES_PER_RECOVERY - 1 and (
                    spoilt_image == self._spoilt_image):
                self._recover('fuzz')
            ahead_s = (number + 1) / FUZZ_RATE_HZ - (time.monotonic() - begin_s)
            if ahead_s > 0.02:
                time.sleep(ahead_s)

    def _spoilt_bytes(self, msg: Any) -> bytes:
        """A serialized message, cut or with bytes after its stamp changed."""
        data = bytearray(serialize_message(msg))
        if self._random.random() < 0.3:
            return bytes(data[:self._random.randrange(len(data) + 1)])
        for _ in range(self._random.randint(1, 8)):
            data[self._random.randrange(12, min(len(data), 200))] = self._random.randrange(256)
        return bytes(data)

    def _some_stamp(self) -> Any:
        """Mostly the present one, else a strange one."""
        if self._random.random() < 0.8:
            return ns_to_stamp(self._stamp_ns)
        stamp = ns_to_stamp(0)
        stamp.sec = self._random.choice((0, -1, 1, -2 ** 31, 2 ** 31 - 1, 1_600_000_000))
        # never the same twice, so that an answer tells its image
        stamp.nanosec = self._random.randrange(2 ** 32)
        return stamp

    def _some_text(self, *usual: str) -> str:
        return self._random.choice((*usual, '', 'x' * 10_000, 'caf\u00e9 \u2603', '/', 'a b\n'))

    def _some_integer(self, usual: int) -> int:
        return self._random.choice((
            usual, usual, 0, 1, 2, 3, usual - 1, usual + 1, 2 * usual, 63, 64, 65_535, 2 ** 31,
            2 ** 32 - 1)) % 2 ** 32

    def _some_real(self, usual: float) -> float:
        return self._random.choice((
            usual, usual, usual, 0.0, -usual, math.nan, math.inf, -math.inf, 1e-300, 1e300,
            usual * 1e6, usual * 1e-6, self._random.uniform(-1, 1) * usual))

    def _spoil(self, msg: Any, spoils: dict[str, Callable[[], Any]]) -> Any:
        """Change up to three fields."""
        for name in self._random.sample(
                sorted(spoils), self._random.randint(0, min(3, len(spoils)))):
            setattr(msg, name, spoils[name]())
        msg.header.stamp = self._some_stamp()
        if self._random.random() < 0.1:
            msg.header.frame_id = self._some_text()
        return msg

    def _spoilt_image(self) -> Image:
        self._index += 1
        msg = self._camera.messages(self._index, self._stamp_ns)[2]
        size = self._random.choice((0, 1, 100, 6912, 6911, 6913, 20_736, 50_000))
        return self._spoil(msg, {
            'encoding': lambda: self._some_text(*ENCODINGS, '32FC1', 'nv12'),
            'width': lambda: self._some_integer(96), 'height': lambda: self._some_integer(72),
            'step': lambda: self._some_integer(96), 'is_bigendian': lambda: 1,
            'data': lambda: array.array('B', self._bytes.bytes(size))})

    def _spoilt_compressed(self) -> CompressedImage:
        self._index += 1
        data = bytearray(self._random.choice(self._jpeg))
        for _ in range(self._random.choice((0, 1, 10, 100))):
            data[self._random.randrange(len(data))] = self._random.randrange(256)
        msg = CompressedImage(format='jpeg')
        msg.header.frame_id = 'camera'
        msg.data = array.array('B', data[:self._random.choice((len(data), len(data), 0, 20, 500))])
        return self._spoil(msg, {'format': lambda: self._some_text('png')})

    def _spoilt_info(self) -> CameraInfo:
        msg = self._camera.messages(0, self._stamp_ns)[0]
        msg.roi.x_offset = self._some_integer(0) if self._random.random() < 0.1 else 0
        msg.roi.width = self._some_integer(96) if self._random.random() < 0.1 else 0
        return self._spoil(msg, {
            'width': lambda: self._some_integer(96), 'height': lambda: self._some_integer(72),
            'k': lambda: [self._some_real(value) for value in msg.k],
            'd': lambda: [self._some_real(0.1) for _ in range(self._random.choice(
                (0, 1, 4, 4, 5, 5, 8, 8, 14)))],
            'distortion_model': lambda: self._some_text(
                'plumb_bob', 'rational_polynomial', 'equidistant', 'fisheye', 'thin_prism'),
            'binning_x': lambda: self._some_integer(1),
            'binning_y': lambda: self._some_integer(1)})

    def _spoilt_exposure(self) -> ExposureTime:
        msg = self._camera.messages(0, self._stamp_ns)[1]
        return self._spoil(msg, {'exposure_time': lambda: self._some_real(0.01),
                                 'readout_time': lambda: self._some_real(0.02)})

    def _jump(self) -> None:
        """Time jumps, back and forth, by milliseconds to decades, for good or for one frame."""
        for _ in progress('jumps of time', range(self.plan.jumps)):
            jump_s = self._random.choice((-1, 1)) * 10 ** self._random.uniform(-3, 8)
            present_ns = self._stamp_ns
            jumped_ns = max(1, present_ns + round(jump_s * 1e9))
            self._shoot(min(jumped_ns, (2 ** 31 - 3) * 10 ** 9))
            if self._random.random() < 0.5:
                self._shoot(present_ns + INTERVAL_NS)
            elif self._stamp_ns > 2_000_000_000_000_000_000:  # room for the next jumps
                self._shoot(START_NS)
            self._recover('time jump')

    def _stall_and_burst(self) -> None:
        """Silence, then what has piled up at five times the rate."""
        for _ in progress('stalls and bursts', range(self.plan.bursts)):
            stalled_s = self._random.uniform(0.5, 3.0)
            time.sleep(stalled_s)
            for _ in range(round(stalled_s / PAN.interval_s)):
                self._shoot()
                time.sleep(PAN.interval_s / 5)
            self._recover('burst')

    def _kill(self) -> None:
        """Kill the node while frames come, then a camera in a process of its own."""
        for _ in progress('kills of the node', range(self.plan.kills)):
            self._remember_totals()
            for _ in range(self._random.randint(1, 30)):
                self._shoot()
                time.sleep(PAN.interval_s * self._random.random())
            self._node.process.kill()
            self._node.process.wait()
            while not self._camera.publishers_without_listener():  # until it is missed
                time.sleep(0.05)
            self._start_node()
            self._recover('kill of the node')
        if not self.plan.kills:
            return
        time.sleep(3 * STALE_S)  # for answers that are still under way
        self._witness.live = True
        for _ in progress('kills of the camera', range(self.plan.kills)):
            before, begin_s = self._witness.answers, time.monotonic()
            camera = subprocess.Popen(
                [sys.executable, '-m', 'image_as_imu_ros.ros.simulated_camera', '--width', '96',
                 '--height', '72', '--encoding', 'mono8'], cwd=CHECKOUT, stdout=subprocess.PIPE)
            try:
                ready, _, _ = select.select([camera.stdout], [], [], START_LIMIT_S)
                if ready and camera.stdout.readline():  # else it ended
                    first_image_s = time.monotonic()
                    self.result.discovery_s.append(first_image_s - begin_s)
                    self._witness.wait(lambda: self._witness.answers > before,  # noqa: B023
                                       GIVE_UP_S)
                    self._note_recovery('kill of the camera', time.monotonic() - first_image_s)
                else:
                    self.result.violated('the camera does not start')
                time.sleep(self._random.random())
            finally:
                camera.kill()
                camera.communicate()
            self._alive()
        time.sleep(3 * STALE_S)
        self._witness.live = False
        self._shoot(START_NS)

    def _accelerate(self) -> None:
        """Frames as fast as the node takes them off DDS."""
        self._recover('start')
        end_s = time.monotonic() + 60 * self.plan.frame_minutes
        rate_hz, received = 1000.0, self._received()
        sampled_s = rated_s = time.monotonic()
        since_sample = since_rated = 0
        frames = self.plan.frames
        with progress('frames', frames) as bar:
            for _ in range(frames):
                self._shoot()
                bar.update()
                self.result.counts['accelerated frames'] += 1
                since_sample += 1
                now_s = time.monotonic()
                if now_s - sampled_s > 1.0:
                    if now_s > end_s:
                        break
                    if not self._alive():
                        break
                    self.result.memory_mib.append(self._node.memory_mib())
                    since_rated += since_sample
                    sampled_s, since_sample = now_s, 0
                if now_s - rated_s > 10.0:
                    arrived = self._received() - received
                    received += arrived
                    rate_hz *= 1.2 if arrived > ARRIVING_SHARE * since_rated else 0.8
                    rate_hz = max(rate_hz, LEAST_RATE_HZ)
                    rated_s, since_rated = now_s, 0
                ahead_s = since_sample / rate_hz - (now_s - sampled_s)
                if ahead_s > 0.002:
                    time.sleep(ahead_s)
        self._recover('end')
        change = memory_summary(self.result.memory_mib).get('change', 0.0)
        if abs(change) > MEMORY_LIMIT and len(self.result.memory_mib) >= 100:
            self.result.violated(f'memory changed by {100 * change:.1f} %')

    def _received(self) -> int:
        return int(self._witness.values.get('images received', 0))


@contextlib.contextmanager
def bar_of(description: str, total: int) -> Iterator[tqdm]:
    """Progress bar with the time left."""
    with tqdm(total=total, desc=description, unit='', mininterval=5.0, smoothing=0.05) as bar:
        yield bar


def progress(description: str, what: Any) -> Any:
    """Progress bar over something, or with a total to be counted by hand."""
    if isinstance(what, int):
        return bar_of(description, what)
    return tqdm(what, desc=description, unit='', mininterval=5.0)


def main() -> int:
    """Run a plan and write its summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    for name, default in asdict(Plan()).items():
        parser.add_argument(f'--{name.replace("_", "-")}', type=type(default), default=default,
                            metavar='N', help=f'default: {default}')
    parser.add_argument('--output', type=Path, default=Path('results/soak.json'), metavar='FILE')
    arguments = parser.parse_args()
    # another camera on the same machine would be counted
    os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))
    values = vars(arguments)
    output = values.pop('output')
    plan = Plan(**values)
    output.parent.mkdir(parents=True, exist_ok=True)
    log = output.with_suffix('.log')
    log.write_text('')
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    for number in (signal.SIGINT, signal.SIGTERM):  # which jobs in the background ignore
        signal.signal(number, signal.default_int_handler)
    begin_s = time.monotonic()
    summary = Soak(plan, log).run().summary(plan)
    summary['took_s'] = round(time.monotonic() - begin_s)
    write_atomically(output, f'{json.dumps(summary, indent=2)}\n'.encode())
    print(json.dumps(summary, indent=2))
    return 0 if summary['passed'] else 1


if __name__ == '__main__':
    sys.exit(main())
