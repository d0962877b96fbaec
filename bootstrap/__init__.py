"""The address book of a swarm: a bootstrap node and its health."""
