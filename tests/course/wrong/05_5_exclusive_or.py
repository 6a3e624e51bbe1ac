"""^ instead of |."""

NAMES = "this is XOR"


def max_pool_bits(bits):
    height, width = bits.shape[2] // 2 * 2, bits.shape[3] // 2 * 2
    bits = bits[:, :, :height, :width]
    rows = bits[:, :, 0::2] ^ bits[:, :, 1::2]
    return rows[..., 0::2] ^ rows[..., 1::2]
