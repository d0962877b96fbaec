"""``python -m p2ptrain`` is the ``p2ptrain`` command."""

from p2ptrain.cli import main

main()
