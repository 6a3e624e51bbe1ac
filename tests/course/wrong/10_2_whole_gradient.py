"""Each plane passes the whole gradient."""

NAMES = "each plane gets the whole gradient"


def three_levels(first, second):
    mean = (sign_ste(first).data + sign_ste(second).data) / 2
    return Tensor(
        mean,
        (first, second),
        lambda grad: (grad * (abs(first.data) <= 1), grad * (abs(second.data) <= 1)),
    )
