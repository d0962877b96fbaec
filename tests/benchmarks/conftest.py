"""Benchmarks are programs of the repository, not an installed package: found from its root."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
