"""The errors of this package."""


class UpscaleError(ValueError):
    """A request that cannot be met; the message is one sentence that names the remedy."""


class UnfinishedError(UpscaleError):
    """Work that had begun and could not go on, such as of a full disk; the message says what is
    kept.
    """
