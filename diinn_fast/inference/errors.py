"""The one error of this package."""


class UpscaleError(ValueError):
    """A request that cannot be met; the message is one sentence that names the remedy."""
