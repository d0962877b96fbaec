"""The training data: from files to the token ids of a microbatch."""

from p2ptrain.data.corpus import TextCorpus, corpus_from_bytes, load_corpus, pin

__all__ = ["TextCorpus", "corpus_from_bytes", "load_corpus", "pin"]
