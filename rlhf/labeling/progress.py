"""Numbers of the admin page."""

from typing import Any

from rlhf.labeling.store import Store


def overview(store: Store, *, now: float | None = None) -> dict[str, Any]:
    """Returns the numbers of the admin page."""
    raise NotImplementedError
