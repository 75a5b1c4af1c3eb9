"""The one exception of this package that is meant for users."""


class DataError(ValueError):
    """Bad data or a bad data setting: the message names the file, sample or key, and the remedy."""
