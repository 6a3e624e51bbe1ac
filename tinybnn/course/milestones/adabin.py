import numpy as np
from tinybnn.course.milestones.residual import BLOCKS, channels
from tinybnn.course.milestones.birealnet import BiRealNet
from tinybnn.course.milestones.reactnet import ReActNet, RPReLU

class Sets:
    sets_w = True
    def __init__(self, rng):
        super().__init__(rng)
        from mybnn.engine import Tensor
        self.sets = {n: (Tensor(np.ones((1,1,1,1), np.float32)), Tensor(np.zeros((1,1,1,1), np.float32))) for n in BLOCKS}
        for n,(a,b) in self.sets.items():
            self.others[f"distance {n}"] = a
            self.others[f"centre {n}"] = b

    def argument(self, x, name):
        a, b = self.sets[name]
        return (x - b) / a

    def filters(self, name):
        from mybnn.estimators import sign_ste, ede_gradient
        w = self.weights[name]
        rows = w.reshape(w.shape[0], -1)
        centre = rows.mean(1, keepdims=True)
        centred = rows - centre
        spread = (centred * centred).mean(1, keepdims=True).sqrt()
        return sign_ste(centred / spread, ede_gradient), spread.T, centre.T

    def combine(self, products, sums, taps, count, name, spread, centre):
        a, b = (p.reshape(1,1,1,1) for p in self.sets[name])
        y = a * (products * spread + sums * centre) + b * (taps * spread + count * centre)
        return y.transpose(0, 3, 1, 2)

    def convolution(self, x, name):
        from mybnn.convolution import windows, fold_windows
        from mybnn.engine import Tensor
        signs = self.signs(x, name)
        v, spread, centre = self.filters(name)
        seen = Tensor(windows(signs.data, 3, padding=1), (signs,), lambda g: (fold_windows(g, signs.shape, 3, padding=1),))
        inside = Tensor(windows(np.ones((1, *x.shape[1:]), np.float32), 3, padding=1))
        n, h, w, k = seen.shape
        o = v.shape[0]
        flat = seen.reshape(n*h*w, k)
        return self.combine((flat @ v.T).reshape(n,h,w,o), seen.sum(3, keepdims=True),
            (inside.reshape(h*w, k) @ v.T).reshape(1,h,w,o), inside.sum(3, keepdims=True), name, spread, centre)

    def convolution_on_words(self, x, name):
        from mybnn.bits import sign
        from mybnn.convolution import xnor_conv2d
        from mybnn.engine import Tensor
        signs = sign(self.argument(x, name).data)
        v, spread, centre = self.filters(name)
        v = v.data.reshape(self.weights[name].shape)
        plus, ones = np.ones_like(v[:1]), np.ones_like(signs[:1])
        ints = [xnor_conv2d(i, f, padding=1).astype(np.float32).transpose(0, 2, 3, 1) for i in (signs, ones) for f in (v, plus)]
        return self.combine(*(Tensor(i) for i in ints), name, spread, centre).data

class SetsRe(Sets, RPReLU):
    pass
class SetsPlain(Sets, BiRealNet):
    pass

class AdaBin(SetsPlain):
    def __init__(self, rng):
        super().__init__(rng)
        self.slopes = {n: (channels(1), channels(0.25)) for n in BLOCKS}
        for n,(a,b) in self.slopes.items():
            self.others[f"slope above {n}"] = a
            self.others[f"slope below {n}"] = b
    def output(self, y, x, name):
        z = y + x
        a, b = self.slopes[name]
        return z.relu() * a - (-z).relu() * b
