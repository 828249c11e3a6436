"""Data sets: loading, checking, splitting, normalizing.

:func:`load` takes what ``--data`` takes, :func:`from_python` what a program has in hand; both give a
:class:`Data` of two :class:`Split`.
"""

from compress.data.augment import Affine, Augmentation, CropFlip
from compress.data.checks import Sizes
from compress.data.folder_split import FolderSplit
from compress.data.load import NAMES, is_here, load
from compress.data.loader_split import LoaderSplit
from compress.data.python import from_python
from compress.data.splits import ArraySplit, Data, Split, as_images
from compress.data.tensors import TensorSplit, from_tensors
from compress.data.tiles import PatchSplit, TileSplit
from compress.metric import Task

__all__ = [
    "NAMES",
    "Affine",
    "ArraySplit",
    "Augmentation",
    "CropFlip",
    "Data",
    "FolderSplit",
    "LoaderSplit",
    "PatchSplit",
    "Sizes",
    "Split",
    "Task",
    "TensorSplit",
    "TileSplit",
    "as_images",
    "from_python",
    "from_tensors",
    "is_here",
    "load",
]
