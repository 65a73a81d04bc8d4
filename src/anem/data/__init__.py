"""Image data sets as 8-bit or 16-bit integers, dequantised afresh for every batch.

Read are folders of image files, ``.npy`` and ``.npz`` arrays, IDX files (the format of MNIST), and image columns of Hugging Face
data sets, streamed. Whatever the source, a data set has a length, ``batch(indices, generator)`` and ``indices``.
"""

from anem.data.config import MNIST_SPLITS, DataConfig, mnist
from anem.data.readers import load_dataset
from anem.data.sets import ImageData, StreamedData

__all__ = ["MNIST_SPLITS", "DataConfig", "ImageData", "StreamedData", "load_dataset", "mnist"]
