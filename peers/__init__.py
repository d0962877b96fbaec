"""Programs that serve: a peer, a simulation of many, a progress display."""
