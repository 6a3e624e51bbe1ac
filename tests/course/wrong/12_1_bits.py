"""Forward returns 0 and 1."""

NAMES = "forward returns bits"


class SineSign(SineSign):
    def forward(self, x):
        return (x >= 0).astype(x.dtype)
