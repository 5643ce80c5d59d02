"""Visual gyroscope: angular and linear velocity of a camera from its motion blur."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)  # joins the generated `msg` package to a source tree
__version__ = '0.1.0'
