"""``digits``: small images of handwritten digits, from the package scikit-learn.

1,797 images of 8 x 8 pixels, each 0 to 16 (E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, 1998, doi 10.24432/C50P49; its test part). They are stored as they
were collected, one person after another, so a client, which is one block of neighbours, holds roughly the
writing of one or two persons.
"""

import importlib
from typing import Any

import numpy as np

from fedge.data.types import Dataset, Windows
from fedge.errors import DataError, SetupError

CLIENTS = 20
IMAGES = 1797
SIDE = 8


def load_digits() -> Dataset:
    """The 20 clients ``block01`` to ``block20``; images ``[n, 8, 8, 1]``, ``group`` = the image.

    Raises:
        SetupError: scikit-learn is not installed.
        DataError: its data is not what it was.
    """
    images, y = _stored()
    x = images.astype(np.float32)[..., None]
    group = np.arange(IMAGES, dtype=np.int64)
    everyone = Windows(x, y.astype(np.int64), group)
    blocks = np.array_split(group, CLIENTS)
    clients = {f"block{number:02d}": everyone.take(block) for number, block in enumerate(blocks, start=1)}
    return Dataset("digits", clients, tuple("0123456789"), ("ink",))


def _stored() -> tuple[Any, Any]:
    """``[1797, 8, 8]`` and ``[1797]``, as the package has them in its own files."""
    try:
        module = importlib.import_module("sklearn.datasets")
    except ImportError:
        raise SetupError(
            "the data set 'digits' comes with the package scikit-learn, which is not installed; "
            "run: pip install 'fedge[simulation]'"
        ) from None
    stored = module.load_digits()
    if stored.images.shape != (IMAGES, SIDE, SIDE) or stored.target.shape != (IMAGES,):
        raise DataError(f"scikit-learn's digits have the shape {stored.images.shape}, not 1797 of 8 x 8")
    return stored.images, stored.target
