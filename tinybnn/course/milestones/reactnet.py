from tinybnn.course.milestones.residual import BLOCKS, channels
from tinybnn.course.milestones.birealnet import BiRealNet
class LearnedSigns(BiRealNet):
    def __init__(self, rng):
        super().__init__(rng)
        self.boundaries = {name: channels(0) for name in BLOCKS}
        self.others |= {f"boundaries of {name}": b for name, b in self.boundaries.items()}

    def argument(self, x, name):
        return x - self.boundaries[name]

class RPReLU(BiRealNet):
    def __init__(self, rng):
        super().__init__(rng)
        self.shapes = {name: (channels(0), channels(0.25), channels(0)) for name in BLOCKS}
        for name, parts in self.shapes.items():
            for what, part in zip(("shift before", "slope below", "shift behind"), parts):
                self.others[f"{what} {name}"] = part

    def output(self, y, x, name):
        before, slope, behind = self.shapes[name]
        z = y + x - before
        return z.relu() - (-z).relu() * slope + behind

class ReActNet(LearnedSigns):
    __init__ = None
    def __init__(self, rng):
        super().__init__(rng)
        self.shapes = {name: (channels(0), channels(0.25), channels(0)) for name in BLOCKS}
        for name, parts in self.shapes.items():
            for what, part in zip(("shift before", "slope below", "shift behind"), parts):
                self.others[f"{what} {name}"] = part

    def output(self, y, x, name):
        before, slope, behind = self.shapes[name]
        z = y + x - before
        return z.relu() - (-z).relu() * slope + behind
