"""Corpora and tokenizers: a microbatch by its id."""
