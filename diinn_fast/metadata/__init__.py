"""What a file says beside its pixels: one value, `Metadata`, from every source to every output.

`Metadata.rescaled` adapts it to another size of the picture; `fitted` says what a format keeps of
it, and names the rest.
"""

from diinn_fast.metadata.exif import Exif
from diinn_fast.metadata.fit import CHOICES, KEEP, chosen, fitted, warn_of_lost
from diinn_fast.metadata.resolution import Resolution
from diinn_fast.metadata.space import Space
from diinn_fast.metadata.stored import as_json, from_json
from diinn_fast.metadata.tags import Tag
from diinn_fast.metadata.value import NOTHING, Metadata, Rule, Text

__all__ = [
    "CHOICES",
    "KEEP",
    "NOTHING",
    "Exif",
    "Metadata",
    "Resolution",
    "Rule",
    "Space",
    "Tag",
    "Text",
    "as_json",
    "chosen",
    "fitted",
    "from_json",
    "warn_of_lost",
]
