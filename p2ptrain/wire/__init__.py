"""Bytes to values and back: framing, messages, limits. No pickle."""
