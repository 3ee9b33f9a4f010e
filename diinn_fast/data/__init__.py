"""Images for training and measuring: finding, decoding, degrading, cropping, packing."""

from diinn_fast.data.crops import Crops, CropSampler, Pairs, degrade, make_pairs
from diinn_fast.data.images import find_images, list_photos, load_photos
from diinn_fast.data.pack import write_pack
from diinn_fast.data.store import decode_all
from diinn_fast.errors import DataError

__all__ = [
    "CropSampler",
    "Crops",
    "DataError",
    "Pairs",
    "decode_all",
    "degrade",
    "find_images",
    "list_photos",
    "load_photos",
    "make_pairs",
    "write_pack",
]
