"""Which GPU, CUDA, driver and framework does a TensorRT want? The table data/compatibility.csv, and what follows."""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING

from trtlab.errors import AssetError
from trtlab.gpus import Gpu, gpu
from trtlab.paths import data_file

if TYPE_CHECKING:
    import pandas as pd

READ = "2026-11-22"  # the day on which the sources were read


def compatibility() -> pd.DataFrame:
    """One row a release: compute capabilities, CUDA, driver, framework, and the source of each row.

    An empty cell was not found in a public source. `evidence` is quoted or measured (here, without a GPU); `source`
    names the pages, `address` holds their URLs, read on the day `READ`.
    """
    import pandas as pd

    with data_file("compatibility.csv").open(encoding="utf-8", newline="") as file:
        return pd.DataFrame(list(csv.DictReader(file))).set_index("software")


def supports(software: str, card: str | Gpu) -> bool:
    """True when that release, such as "TensorRT 10.0", runs on the GPU, by its compute capability in the table.

    Raises AssetError for a release that is not in the table, or a GPU that is not known.
    """
    table = compatibility()
    if software not in table.index:
        raise AssetError(f"'{software}' is not in the table.", fix=f"choose one of {', '.join(table.index)}.")
    capability = (card if isinstance(card, Gpu) else gpu(card)).compute_capability
    words = str(table.loc[software, "compute_capability"]).split("(")[0]
    listed = re.findall(r"\d+\.\d", words)
    if "and later" in words:
        return _number(capability) >= _number(listed[0])
    return capability in listed


def _number(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))
