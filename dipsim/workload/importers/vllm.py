"""vLLM's routed experts (`--enable-return-routed-experts`), saved as a `.npy` file: integers [tokens, layers, k].

Layers are those with experts, or all of the model. vLLM returns the experts of the prompt and of what was generated as
two arrays; saved in one, they are taken as tokens that followed one by one, because the file does not say where the
prompt ends. There are no weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dipsim.basics.errors import InputError, one_line
from dipsim.workload.importers.importer import Importer, Recording

EXPECTED = "an array of integers [tokens, layers, k] is expected, as numpy.save writes it"


class Vllm(Importer):
    """An array of int16, or of any other integers."""

    @staticmethod
    def read(file: Path) -> Recording:
        """Read an array. Raises InputError if it has other dimensions, no integers, or experts that are negative."""
        if not file.stat().st_size:
            raise InputError(f"{file}: is empty; {EXPECTED}")
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)  # mapped, so that a truncated file is seen at once
        except Exception as error:  # numpy reads the header as Python, so with whatever errors that has
            raise InputError(f"{file}: cannot be read ({one_line(error)}); {EXPECTED}") from None
        if not isinstance(array, np.ndarray):
            array.close()
            raise InputError(f"{file}: holds several arrays; {EXPECTED}")
        if array.ndim != 3 or not array.size or not np.issubdtype(array.dtype, np.integer):
            raise InputError(f"{file}: {array.dtype} {list(array.shape)}; {EXPECTED}")
        ids = array.astype(np.int64)
        if (bad := (ids < 0).any(axis=(1, 2))).any():
            raise InputError(
                f"{file}: token {bad.argmax()}: a negative expert, which vLLM writes for a token of its prefix cache; "
                "record it from an empty cache"
            )
        return Recording(ids=ids)
