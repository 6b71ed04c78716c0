"""When something is measured or recorded, apart from what it is."""

from __future__ import annotations

from dataclasses import dataclass

from gradlab.errors import BadInput, whole_number


@dataclass(frozen=True)
class Schedule:
    """Training steps at which something is due: evenly spaced, log-spaced, or both.

    Early in training a gradient changes within a few steps, later within thousands; log-spaced
    steps catch both at the cost of a few rows.

    Args:
      every: due at 0, ``every``, 2 ``every``, ...; None: not evenly spaced.
      per_decade: due at step 0 and at so many log-spaced steps of each decade
        (``per_decade=3``: 0, 1, 2, 5, 10, 22, 46, 100, ...); None: not log-spaced.
      key: configuration key of ``every`` for messages; that of ``per_decade`` stands beside it.

    Raises:
      BadInput: if one of them is below 1, ``per_decade`` above 1000, or neither is given.
    """

    every: int | None
    per_decade: int | None = None
    key: str = "trainer.log_every"

    def __post_init__(self) -> None:
        other = self.key.removesuffix("every") + "per_decade"
        if self.every is None and self.per_decade is None:
            raise BadInput(self.key, None, f"a whole number of at least 1, unless {other} is given")
        if self.every is not None:
            whole_number(self.key, self.every, 1)
        if self.per_decade is not None:
            whole_number(other, self.per_decade, 1, 1000)

    def most(self, total: int) -> int:
        """At most how many :meth:`steps` there are, without making them."""
        evenly = 0 if self.every is None else -(-total // self.every)
        return evenly + (self.per_decade or 0) * len(str(total)) + 1

    def steps(self, total: int) -> set[int]:
        """The steps below ``total`` at which it is due, the last step always among them."""
        due = {total - 1}
        if self.every is not None:
            due |= set(range(0, total, self.every))
        if self.per_decade is not None:
            decades = len(str(total))
            spaced = (round(10 ** (k / self.per_decade)) for k in range(decades * self.per_decade))
            due |= {0, *(step for step in spaced if step < total)}
        return due
