"""The surrogate of the straight-through estimator."""

NAMES = "clipped line"


class SineSign(SineSign):
    def surrogate(self, x):
        return tb.clamp(x, -1.0, 1.0)
