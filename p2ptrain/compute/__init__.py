"""Torch: the only importer of it."""
