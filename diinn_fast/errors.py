"""The errors of this package; ``diinn_fast.Error`` is the base class of all.

Each message is one sentence that names what is wrong and what to do about it. The second base of a
class is the built-in error that callers may already expect.
"""


class Error(Exception):
    """Base of every error that this package raises on purpose."""


class UpscaleError(Error, ValueError):
    """A request that cannot be met, such as a size or a memory bound."""


class UnfinishedError(UpscaleError):
    """Work that had begun and could not go on, for example because a disk is full.

    The message says what is kept.
    """


class ImageError(Error, ValueError):
    """An image file that cannot be read or written."""


class DataError(Error, ValueError):
    """Training photographs that are missing, damaged or unsuitable."""


class CheckpointError(Error, ValueError):
    """A checkpoint that cannot be read, or does not fit the model."""


class EditError(Error, NotImplementedError):
    """A change of a model that would have no effect here, or an effect that nobody can bound."""


class BackendError(Error, RuntimeError):
    """A backend that was asked for by name and cannot run here."""


class DivergedError(Error, FloatingPointError):
    """Training cannot go on: a loss or a weight is not a finite number."""


class ExportError(Error):
    """A model that cannot be exported, or a package that exporting needs and that is missing."""
