from tinybnn.course.milestones.residual import Network, compare
class Shortcuts(Network):
    def output(self, y, x, name):
        return y + x


class BiRealNet(Shortcuts):
    estimator = "approx_gradient"
