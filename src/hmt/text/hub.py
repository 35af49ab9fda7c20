"""Rows of data sets on a hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hmt.pretrained import first_line, hub_remedy
from hmt.text.tables import Row

SHUFFLE_BUFFER = 10_000
"""Rows among which a stream is shuffled."""


def hub_rows(
    hub_id: str,
    split: str,
    *,
    subset: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    shuffle_seed: int | None = None,
    instead: str = "",
) -> Iterator[Row]:
    """Rows of one split of a data set.

    Args:
        hub_id: As in OWNER/NAME.
        split: One of the data set's own splits.
        subset: Its configuration.
        revision: Branch or commit.
        streaming: Read over the network, row by row, instead of fetching everything first.
        shuffle_seed: Take the rows in an order drawn with this; a stream is shuffled within a window.
        instead: What can be done without the hub, for the complaint.

    Raises:
        OSError: If it cannot be loaded; one line that says why.
        ImportError: If datasets is not installed.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise ImportError(
            f"reading {hub_id} from a hub needs datasets, the extra data: pip install datasets"
        ) from error
    settings: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        rows: Any = datasets.load_dataset(hub_id, subset, split=split, streaming=streaming, **settings)
        if shuffle_seed is not None:
            rows = rows.shuffle(shuffle_seed, **({"buffer_size": SHUFFLE_BUFFER} if streaming else {}))
        yield from rows
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise OSError(f"cannot load {hub_id} ({split}): {hub_remedy(error) or first_line(error)}{instead}") from error
