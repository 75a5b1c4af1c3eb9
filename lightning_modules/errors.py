"""The one exception of this package that is meant for users."""


class ModelError(ValueError):
    """Bad model setting, weights or batch: the message names the key, file or sample, and the remedy."""
