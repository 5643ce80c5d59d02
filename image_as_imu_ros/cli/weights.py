"""`image-as-imu weights`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    actions = parser.add_subparsers(dest='action', required=True)
    actions.add_parser('list', help='shipped weights with licence and metrics')
    actions.add_parser('verify', help='check every shipped file against its sha256')
    export = actions.add_parser('export', help='turn a training checkpoint into weights')
    export.add_argument('checkpoint', type=Path, metavar='CHECKPOINT',
                        help='checkpoint.pt of a run folder')
    export.add_argument('output', type=Path, metavar='OUT', help='.safetensors file to write')
    export.add_argument('--note', action='append', default=[], metavar='KEY=VALUE',
                        help='text to store in the file, such as licence=MIT')
    import_ = actions.add_parser(
        'import', help="turn the paper's published checkpoint into weights",
        description='Turn the published checkpoint of the paper, downloaded by hand, into weights '
                    'that every command and the node take as --weights OUT or '
                    'estimator.weights. Its tensors must be exactly those of the network.')
    import_.add_argument('checkpoint', type=Path, metavar='FILE',
                         help='plain state dict: .pt, .pth or .safetensors')
    import_.add_argument('output', type=Path, metavar='OUT', nargs='?',
                         help='.safetensors file to write (default: beside FILE)')
    onnx = actions.add_parser('onnx', help='write the network and its critic as ONNX models')
    onnx.add_argument('weights', metavar='IN',
                      help='shipped weights by name, or a .safetensors file')
    onnx.add_argument('output', type=Path, metavar='DIR',
                      help='folder for network.onnx, which begins after the front ends, and '
                           'critic.onnx')
    onnx.add_argument('--whole', action='store_true',
                      help='write whole.onnx too, from images to distributions, for other '
                           'programs')
    fit = actions.add_parser('fit-critic', help="fit the critic of the blur's length to whole "
                                                 'synthetic images')
    fit.add_argument('weights', metavar='IN',
                     help='shipped weights by name, or a .safetensors file')
    fit.add_argument('output', type=Path, metavar='OUT', help='.safetensors file to write')
    fit.add_argument('--assets', type=Path, metavar='DIR', required=True,
                     help='folder of photographs and panoramas')
    fit.add_argument('--keyframes', type=Path, metavar='DIR',
                     help='views of rooms, of `synthesize --preset keyframes`, to add')
    fit.add_argument('--images', type=int, default=10_000, metavar='N',
                     help='images to fit on (default: 10000)')
    fit.add_argument('--seed', type=int, default=7, metavar='N', help='seed (default: 7)')
    fit.add_argument('--workers', type=int, default=2, metavar='N',
                     help='processes that make and solve images (default: 2)')


def run(arguments: argparse.Namespace) -> None:
    """List, verify, export, import or fit, or write as ONNX."""
    from image_as_imu_ros.model import weights_files
    if arguments.action in ('list', 'verify'):
        for name in weights_files.shipped_names():
            digest = weights_files.verify(name)
            print(f'{name}: {digest}' if arguments.action == 'verify'
                  else f'{name}: {json.dumps(weights_files.description(name))}')
        return
    from image_as_imu_ros.model import weights
    if arguments.action == 'import':
        output = arguments.output or arguments.checkpoint.with_suffix('.safetensors')
        digest = weights.import_weights(arguments.checkpoint, output)
        print(f'{output}: sha256 {digest}')
        return
    if arguments.action == 'onnx':
        path = weights_files.find_weights(arguments.weights).path
        names = weights.export_onnx(path, arguments.output, arguments.whole)
        print(f'{arguments.output}: {", ".join(names)}')
        return
    if arguments.action == 'fit-critic':
        from image_as_imu_ros.training.fit_critic import fit_critic
        loaded = weights.load_weights(arguments.weights)
        error = fit_critic(loaded.network, arguments.assets, arguments.images, arguments.seed,
                           arguments.keyframes, arguments.workers)
        digest = weights.export_weights(loaded.network.state_dict(), arguments.output, {
            **loaded.file.metadata, 'critic_images': str(arguments.images),
            'critic_seed': str(arguments.seed), 'critic_error': f'{error:.4f}'})
        print(f'{arguments.output}: sha256 {digest}; held-out error of the motion field, '
              f'median {100 * error:.0f} %')
        return
    if arguments.action == 'export':
        from image_as_imu_ros.model.network import WHOLE, WIDTHS
        from image_as_imu_ros.training.checkpoint import read_checkpoint
        state = read_checkpoint(arguments.checkpoint)
        notes = dict(note.split('=', 1) for note in arguments.note)
        digest = weights.export_weights(state['average'], arguments.output, {
            'architecture': state['architecture'],
            'widths': json.dumps(state['config'].get('widths', WIDTHS)),
            'ranks': json.dumps(state['config'].get('ranks', WHOLE)),
            'crops': str(state['crops']), 'config': json.dumps(state['config']),
            'validation_loss': f'{state["validation_loss"]:.4f}', **notes})
        print(f'{arguments.output}: sha256 {digest}')
