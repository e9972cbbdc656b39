"""Locust's side of the curves: `SustainedShape` and `BurstShape`.

In locust a shape is a number of users over time; here it is a rate (`loadtests.curves`). The users of `loadtests.users`
take the next due body from one plan, so their number only bounds how many requests are open at once: a shape keeps it
constant and ends the test when the curve has ended and every body sent was answered.
"""

from locust import LoadTestShape

from loadtests import curves
from loadtests.curves import Curve


class CurveShape(LoadTestShape):
    """Constant users until the plan has been carried out."""

    abstract = True
    curve: Curve
    is_over = False
    """Set by the sender when nothing is due or open any more."""

    def __init__(self, curve: Curve | None = None, users: int = 201) -> None:
        """`curve` for a shorter or gentler one than the class has."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.users = users
        if curve is not None:
            self.curve = curve

    def tick(self) -> tuple[int, float] | None:
        """Users, and how many to start a second."""
        return None if self.is_over else (self.users, 100.0)


class SustainedShape(CurveShape):
    """1000 events/s for 5 minutes."""

    curve = curves.sustained()


class BurstShape(CurveShape):
    """100 to 5000 events/s within 30 s, back to 100/s within a minute."""

    curve = curves.burst()


def of(curve: Curve, users: int) -> CurveShape:
    """The shape of a curve of `loadtests.curves`."""
    return (BurstShape if curve.name == "burst" else SustainedShape)(curve, users)
