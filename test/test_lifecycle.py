"""Every transition of the node's lifecycle, those that fail too, and what changes at run time."""

from __future__ import annotations

import pytest

pytest.importorskip('rclpy')
pytest.importorskip('image_as_imu_ros.msg')

from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import State, Transition
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from test_node import Peer, Rig, activate, vector

CONFIGURE, ACTIVATE, DEACTIVATE, CLEANUP = (
    Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE,
    Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP)
UNCONFIGURED, INACTIVE, ACTIVE, FINALIZED = (
    State.PRIMARY_STATE_UNCONFIGURED, State.PRIMARY_STATE_INACTIVE, State.PRIMARY_STATE_ACTIVE,
    State.PRIMARY_STATE_FINALIZED)
WAYS = {UNCONFIGURED: (), INACTIVE: (CONFIGURE,), ACTIVE: (CONFIGURE, ACTIVATE)}
SHUTDOWNS = {UNCONFIGURED: Transition.TRANSITION_UNCONFIGURED_SHUTDOWN,
             INACTIVE: Transition.TRANSITION_INACTIVE_SHUTDOWN,
             ACTIVE: Transition.TRANSITION_ACTIVE_SHUTDOWN}
ALLOWED = {UNCONFIGURED: {CONFIGURE}, INACTIVE: {ACTIVATE, CLEANUP}, ACTIVE: {DEACTIVATE}}


def go(peer: Peer, *transitions: int) -> None:
    """Change state again and again."""
    for transition in transitions:
        assert peer.change_state(transition)


def set_parameter(peer: Peer, name: str, value: object) -> str:
    """Why a new value is refused; empty if it is not."""
    (result,) = peer.call('set_parameters', SetParameters.Request(
        parameters=[Parameter(name, value=value).to_parameter_msg()])).results
    return '' if result.successful else result.reason


@pytest.mark.parametrize('state', WAYS)
def test_a_transition_from_the_wrong_state_is_refused_and_changes_nothing(
        blurred_sequence, state):
    with Rig(blurred_sequence) as peer:
        go(peer, *WAYS[state])
        shutdowns = set(SHUTDOWNS.values()) - {SHUTDOWNS[state]}
        transitions = {CONFIGURE, ACTIVATE, DEACTIVATE, CLEANUP} | shutdowns
        for transition in transitions - ALLOWED[state]:
            assert not peer.change_state(transition)
            assert peer.state() == state
        go(peer, SHUTDOWNS[state])
        assert peer.state() == FINALIZED
        assert peer.image_publisher.get_subscription_count() == 0


@pytest.mark.parametrize('transition, broken', [(DEACTIVATE, '_stop'), (CLEANUP, '_free')])
def test_a_transition_that_breaks_down_leaves_a_node_to_be_configured_again(
        blurred_sequence, monkeypatch, transition, broken):
    rig = Rig(blurred_sequence)
    with rig as peer:
        go(peer, *WAYS[ACTIVE if transition == DEACTIVATE else INACTIVE])
        whole = getattr(rig.node, broken)

        def break_down_once():
            monkeypatch.setattr(rig.node, broken, whole)
            raise RuntimeError('a bug')
        monkeypatch.setattr(rig.node, broken, break_down_once)
        assert not peer.change_state(transition)
        assert peer.state() == UNCONFIGURED
        peer.wait(lambda: peer.status.level == DiagnosticStatus.ERROR, 'an error')
        assert 'broke down' in peer.status.message and 'a bug' in peer.status.message
        activate(peer)
        assert peer.send().header.frame_id
        peer.wait(lambda: peer.status.level != DiagnosticStatus.ERROR, 'health')


def test_settings_of_the_estimator_follow_while_active(blurred_sequence):
    rig = Rig(blurred_sequence)
    with rig as peer:
        activate(peer)
        assert not set_parameter(peer, 'stream.max_gap', 0.02)
        for _ in range(3):  # 33 ms apart: each one starts anew
            assert not peer.send().sign_resolved
        assert not set_parameter(peer, 'stream.max_gap', 0.5)
        peer.send()
        near = peer.send()
        assert near.sign_resolved
        assert not set_parameter(peer, 'estimator.scene_depth', 1000.0)
        far = peer.send()
        assert abs(vector(far.linear_velocity)).max() > 10 * abs(
            vector(near.linear_velocity)).max()
        assert not set_parameter(peer, 'diagnostics_period', 0.2)
        assert rig.node._diagnostics_timer.timer_period_ns == 200_000_000
        count = len(peer.received['diagnostics'])
        peer.wait(lambda: len(peer.received['diagnostics']) > count + 2, 'diagnostics')


def test_what_activation_reads_changes_while_inactive(blurred_sequence):
    with Rig(blurred_sequence) as peer:
        activate(peer)
        assert 'deactivate first' in set_parameter(peer, 'image_transport', 'compressed')
        go(peer, DEACTIVATE)
        assert not set_parameter(peer, 'image_transport', 'compressed')
        go(peer, ACTIVATE)
        peer.wait(lambda: peer.count_subscribers('image/compressed') == 1, 'a subscription')


def test_what_configuration_reads_changes_while_unconfigured(blurred_sequence):
    with Rig(blurred_sequence) as peer:
        go(peer, CONFIGURE)
        assert 'clean up first' in set_parameter(peer, 'estimator.weights', 'no_such')
        go(peer, CLEANUP)
        assert not set_parameter(peer, 'estimator.weights', 'no_such')
        assert not peer.change_state(CONFIGURE)
        assert not set_parameter(peer, 'estimator.weights', 'compact')
        assert not set_parameter(peer, 'estimator.working_size', 128)
        activate(peer)
        peer.send()
