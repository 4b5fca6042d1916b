"""The package's version, readable without TensorFlow."""

__version__ = "0.1.0"
