"""The one exception of this package that is meant for users."""


class RetrievalError(ValueError):
    """Bad embeddings, rankings or annotations: the message names the file, line or id, and the remedy."""
