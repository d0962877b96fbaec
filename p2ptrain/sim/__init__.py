"""The other world: virtual time, a seeded network, checkers outside the system."""
