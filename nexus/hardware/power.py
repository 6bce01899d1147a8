"""Mean power over a window of time, and whether it keeps within a budget: arithmetic without a thread of its own."""

from __future__ import annotations

import time
from collections import deque

from nexus.hardware.sensors import Sensor


class DrawWindow:
    """Energy that was drawn in the last `seconds`, divided by them.

    A sample holds until the next one. What was drawn before the first sample is not known and counts as nothing, so
    that a run may begin at full power.

    Args:
        seconds: length of the window.

    Raises:
        ValueError: if that is not above 0.
    """

    def __init__(self, seconds: float) -> None:
        if seconds <= 0:
            raise ValueError("seconds must be above 0")
        self.seconds = seconds
        self._samples: deque[tuple[float, float]] = deque()

    def add(self, at: float, watts: float) -> None:
        """Take up a sample, no earlier than the last one.

        Args:
            at: seconds on a clock.
            watts: drawn from then on.
        """
        self._samples.append((at, watts))
        while len(self._samples) > 1 and self._samples[1][0] <= at - self.seconds:
            self._samples.popleft()  # it ended before the window begins

    def mean(self, now: float) -> float:
        """Mean power of the window that ends now, in watts.

        Args:
            now: on the clock of the samples.

        Returns:
            0 before the first sample.
        """
        begins = now - self.seconds
        ends = [at for at, _ in self._samples][1:] + [now]
        spans = (watts * max(0.0, end - max(at, begins)) for (at, watts), end in zip(self._samples, ends, strict=False))
        return sum(spans) / self.seconds


class MeanDraw:
    """A sensor of the mean power, over one of the present power.

    Args:
        sensor: watts now.
        seconds: length of the window.
    """

    def __init__(self, sensor: Sensor, *, seconds: float) -> None:
        self.sensor = sensor
        self.window = DrawWindow(seconds)

    def read(self) -> float | None:
        """Watts in the mean of the window; None if the present power is not known."""
        watts, now = self.sensor.read(), time.monotonic()
        if watts is None or watts < 0:
            return None
        self.window.add(now, watts)
        return self.window.mean(now)


def must_rest(mean: float, *, resting: bool, watts: float, resume_watts: float) -> bool:
    """Whether training has to stand still for its budget; two limits, so that it does not flap.

    Args:
        mean: power over the window.
        resting: whether it stands still already.
        watts: the budget.
        resume_watts: at or below, a rest ends.

    Returns:
        True while the mean is above the limit that applies.
    """
    return mean > (resume_watts if resting else watts)
