"""One anomaly detector, product class after product class, without keeping the images."""

__version__ = "0.1.0"
