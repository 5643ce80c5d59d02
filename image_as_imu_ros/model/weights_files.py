"""Files of weights: shipped ones by name, others by path, checked whenever they are opened."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from image_as_imu_ros.errors import WeightsError

SHIPPED = Path(__file__).parent / 'shipped'
REFERENCE = 'reference'
"""Architecture of the paper's network."""
COMPACT = 'compact-4'
"""Architecture of the compact network."""
TIMM = 'timm:'
"""Before a backbone's name in the name of its architecture."""


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights and what it says of itself."""

    name: str
    path: Path
    metadata: dict[str, str]

    @property
    def architecture(self) -> str:
        """Name that `build_network` knows."""
        return str(self.metadata.get('architecture'))


def shipped_names() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob('*.safetensors'))


def description(name: str) -> dict[str, Any]:
    """The shipped record of weights: sha256, architecture, licence, data, metrics."""
    return json.loads((SHIPPED / f'{name}.json').read_text())


def verify(name: str) -> str:
    """
    Check the shipped file against its recorded hash.

    :returns: the sha256
    :raises WeightsError: if the file is missing or differs
    """
    path = SHIPPED / f'{name}.safetensors'
    if not path.is_file():
        shipped = ', '.join(shipped_names()) or 'none'
        raise WeightsError(f'no weights "{name}"; shipped: {shipped}; '
                           'or give the path of a .safetensors file')
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = description(name)['sha256']
    if actual != expected:
        raise WeightsError(f'{path} is damaged: sha256 {actual}, expected {expected}; reinstall')
    return actual


def find_weights(name_or_path: str) -> WeightsFile:
    """
    Open a file of weights for what it says of itself.

    :param name_or_path: a shipped name, or a path that ends in .safetensors
    :raises WeightsError: if the file is missing or damaged
    """
    if name_or_path.endswith('.safetensors'):
        path, name = Path(name_or_path), Path(name_or_path).stem
    else:
        verify(name_or_path)
        path, name = SHIPPED / f'{name_or_path}.safetensors', name_or_path
    try:
        with safe_open(path, 'np') as file:
            return WeightsFile(name, path, file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise WeightsError(f'cannot read weights {path}: {error}') from error
