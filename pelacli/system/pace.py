"""How long work will take, told from the time of its first parts."""

from __future__ import annotations

# What the rest may take, as a share of what the timed parts say: batches are unlike, and machines
# shared. Chosen, not measured (docs/log/first-minutes.md).
_LEAST, _MOST = 0.8, 1.35
_ENOUGH = 3.0  # seconds that parts are timed for, or two parts
_LONG = 20.0  # seconds from which on it is worth a word


class Pace:
    """The times of the first parts of some work.

    Args:
        total: all units of the work, those done before included.
        done: units done before.
        calls: so many calls make up a part, where one alone says little (a layer of a block).
        warm: so many parts are not timed, as they hold other work too.
    """

    def __init__(self, total: float, done: float = 0.0, *, calls: int = 1, warm: int = 0) -> None:
        self._total, self._calls, self._warm = total, calls, warm
        self._count, self._from, self._since = 0, done, 0.0

    def start(self, now: float) -> None:
        """The work begins."""
        self._since = now

    def left(self, done: float, now: float) -> tuple[float, float] | None:
        """Count a call in.

        Args:
            done: units done by now.
            now: seconds of a clock.

        Returns:
            (least, most) seconds that the rest will take. None while it is not known, where nothing
            is left, or where the whole is too short to speak of.
        """
        self._count += 1
        parts, inside = divmod(self._count, self._calls)
        if inside:
            return None
        if parts <= self._warm:
            self._from, self._since = done, now
            return None
        took = now - self._since
        if parts - self._warm < 2 and took < _ENOUGH:
            return None
        rest = (self._total - done) * took / (done - self._from)
        if not rest or took + rest < _LONG:
            return None
        return _LEAST * rest, _MOST * rest
