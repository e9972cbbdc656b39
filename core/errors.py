"""Errors named after what the caller does with them.

Library errors are translated where the library is called, with the cause chained. Messages carry ids and positions,
never payloads or secrets.
"""


class ArenacastError(Exception):
    """Root of all errors raised on purpose."""


class Retry(ArenacastError):
    """Transient (a server away, a timeout, a full queue): back off and do the same again."""


class Poison(ArenacastError):
    """This entry can never be processed: put it into the dead letters with the reason and go on."""


class Fenced(ArenacastError):
    """Somebody else owns the shard now: stop writing at once, give the work up."""


class Fatal(ArenacastError):
    """Going on would do harm or cannot work: say it in one line and end the process."""
