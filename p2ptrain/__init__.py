"""Peer-to-peer pipeline training without a coordinator."""

__version__ = "0.1.0"
