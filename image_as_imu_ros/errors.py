"""Exceptions: each message says what was wrong, the value, and what to do."""


class ImageAsImuError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(ImageAsImuError):
    """A setting is unknown, out of range or contradicts another."""


class InputError(ImageAsImuError):
    """One image, camera or exposure cannot be used; the next one may be fine."""


class WeightsError(ImageAsImuError):
    """Weights are missing, corrupt or made for another architecture."""


class DataFormatError(ImageAsImuError):
    """A recording is missing a file, column or topic, or holds something unreadable."""


class SynchronizationError(ImageAsImuError):
    """Stamps go backwards, repeat or do not overlap."""
