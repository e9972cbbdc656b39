"""The wheel: everybody once a turn, a few at a time."""

from gateway.wheel import AT_ONCE, SLOTS, Wheel


class Spoke:
    unsent = 0
    is_closing = False

    def __init__(self) -> None:
        self.slot = 0
        self.beats: list[float] = []

    def beat(self, now: float) -> None:
        self.beats.append(now)

    def dismiss(self) -> None:
        raise AssertionError("nobody drains here")

    def close(self, code: int, reason: str) -> None:
        raise AssertionError("nobody is evicted here")

    def cut(self) -> None:
        raise AssertionError("nobody is evicted here")


def test_everybody_beats_once_a_turn_and_few_at_once() -> None:
    wheel = Wheel(6.4)
    spokes = [Spoke() for _ in range(10 * SLOTS)]
    for spoke in spokes:
        wheel.add(spoke)
    for tick in range(2 * SLOTS):
        assert list(wheel.tick(tick * wheel.tick_s)) == []
        assert sum(spoke.beats[-1:] == [tick * wheel.tick_s] for spoke in spokes) == 10
    assert all(len(spoke.beats) == 2 for spoke in spokes)
    assert all(round(spoke.beats[1] - spoke.beats[0], 6) == 6.4 for spoke in spokes)


def test_what_leaves_during_a_tick_does_not_disturb_it() -> None:
    wheel = Wheel(1.0)

    class Leaver(Spoke):
        def beat(self, now: float) -> None:
            super().beat(now)
            wheel.remove(self)

    leavers = [Leaver() for _ in range(3 * SLOTS)]
    for leaver in leavers:
        wheel.add(leaver)
    for tick in range(2 * SLOTS):
        list(wheel.tick(float(tick)))
    assert all(len(leaver.beats) == 1 for leaver in leavers)
    assert len(wheel) == 0
    wheel.remove(leavers[0])  # harmless


def test_a_crowd_beats_in_parts_and_who_leaves_between_them_beats_no_more() -> None:
    wheel = Wheel(1.0)
    spokes = [Spoke() for _ in range(SLOTS * 3 * AT_ONCE)]
    for spoke in spokes:
        wheel.add(spoke)
    done = [0]
    for _ in wheel.tick(0.0):
        done.append(sum(len(spoke.beats) for spoke in spokes))
        if len(done) == 3:
            for spoke in spokes:
                wheel.remove(spoke)
    assert done == [0, AT_ONCE, 2 * AT_ONCE, 2 * AT_ONCE]


def test_is_the_list_of_all() -> None:
    wheel = Wheel(1.0)
    spokes = {Spoke() for _ in range(100)}
    for spoke in spokes:
        wheel.add(spoke)
    assert set(wheel) == spokes
    assert len(wheel) == 100
