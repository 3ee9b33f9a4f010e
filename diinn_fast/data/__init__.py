"""Images for training and measuring: finding, decoding, degrading, cropping."""

from diinn_fast.data.crops import CropSampler, degrade
from diinn_fast.data.images import DataError, find_images, load_photos

__all__ = ["CropSampler", "DataError", "degrade", "find_images", "load_photos"]
