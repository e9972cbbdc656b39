"""Leaving out what a later message replaces, for readers who lag. Pure.

A state message is left out only when the one that replaces it goes out in the same write. A newer one further on is
not enough: the reader's cursor would cover a state that it never got, and if the newer one is rolled back before it is
sent, it never would.
"""

from collections.abc import Sequence

from gateway.frames import Item


def take(items: Sequence[Item], start: int, bytes_max: int) -> tuple[list[Item], int]:
    """From `start` on, what fills about `bytes_max` once conflated, in order; and the index to go on from.

    Events are all there; of the state messages of a topic and kind only the last one. With a positive `bytes_max` at
    least one item is passed over, if there is one.
    """
    kept: list[Item | None] = []
    newest: dict[tuple[str, str], int] = {}
    size = 0
    index = start
    while index < len(items) and size < bytes_max:
        item = items[index]
        index += 1
        if item.is_state:
            key = (item.topic, item.kind)
            replaced = newest.get(key)
            if replaced is not None:
                old = kept[replaced]
                assert old is not None
                size -= len(old.data)
                kept[replaced] = None
            newest[key] = len(kept)
        kept.append(item)
        size += len(item.data)
    return [item for item in kept if item is not None], index
