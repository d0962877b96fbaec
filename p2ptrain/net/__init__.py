"""The real network: the only importer of hivemind."""
