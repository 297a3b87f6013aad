"""The kernels of a view, in Triton, for images of three channels.

The same arithmetic as ``pixels``, which is what they are tested against. Crop, flip and the colour
steps before contrast are one pass; contrast needs the mean of what they leave, so it begins the
next, with all that follows it; the blur is one pass along each side. A program works on one image,
whose draws choose its branch: no step is computed for an image that it was not drawn for.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs

import triton
import triton.language as tl

# The columns of an image's draws, as the kernels read them.
BOX = tl.constexpr(0)  # top, left, height, width
FLIP = tl.constexpr(4)
JITTER = tl.constexpr(5)
ORDER = tl.constexpr(6)  # of the four colour steps
FACTORS = tl.constexpr(10)
GREYSCALE = tl.constexpr(14)
BLUR = tl.constexpr(15)
SIGMA = tl.constexpr(16)
SOLARIZE = tl.constexpr(17)
WIDTH = tl.constexpr(18)
CONTRAST = tl.constexpr(1)  # its number among the colour steps


@triton.jit
def _unit(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _cubic(distance):
    """Keys' kernel with a = -1/2."""
    near = (1.5 * distance - 2.5) * distance * distance + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return tl.where(distance < 1.0, near, tl.where(distance < 2.0, far, 0.0))


@triton.jit
def _wave(value, chroma, turns):
    """A channel of the colour whose hue is ``turns`` from where the channel is smallest."""
    away = tl.abs(turns - tl.floor(turns + 0.5))
    return value - chroma * _unit(2.0 - 6.0 * away)


@triton.jit
def _hue(r, g, b, turns):
    larger, smaller = tl.maximum(g, b), tl.minimum(g, b)
    value = tl.maximum(r, larger)
    chroma = value - tl.minimum(r, smaller)
    sixths = tl.where(
        r >= larger, g - b, tl.where(g >= b, b - r + 2.0 * chroma, r - g + 4.0 * chroma)
    )
    hue = sixths / (6.0 * chroma + 1e-20) + turns  # grey has no hue, and 0 / 0
    red = _wave(value, chroma, hue + 1 / 2)
    green = _wave(value, chroma, hue + 1 / 6)
    blue = _wave(value, chroma, hue - 1 / 6)
    return red, green, blue


@triton.jit
def _luma(r, g, b):
    return 0.299 * r + 0.587 * g + 0.114 * b


@triton.jit
def _colour(r, g, b, kind, factor, mean):
    """One of the four colour steps."""
    if kind == 3:
        r, g, b = _hue(r, g, b, factor)
    else:
        other = tl.zeros_like(r)  # brightness mixes with black
        if kind == 1:
            other += mean
        if kind == 2:
            other += _luma(r, g, b)
        r = _unit(other + factor * (r - other))
        g = _unit(other + factor * (g - other))
        b = _unit(other + factor * (b - other))
    return r, g, b


@triton.jit
def _jitter(r, g, b, own, mean, after):
    """The steps before contrast, or else contrast and those after it."""
    seen = 0
    for place in range(4):
        kind = tl.load(own + ORDER + place).to(tl.int32)
        if kind == CONTRAST:
            seen = 1
        if seen == after:
            r, g, b = _colour(r, g, b, kind, tl.load(own + FACTORS + kind), mean)
    return r, g, b


@triton.jit
def crop_kernel(
    images,
    where,
    numbers,
    out,
    sums,
    height,
    width,
    channel,
    pixel,
    per_byte,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Crop, flip, and the colour steps before contrast; the sum of grey values of each tile."""
    image = tl.program_id(1)
    across = tl.cdiv(width, COLUMNS)
    rows = tl.program_id(0) // across * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    own = numbers + image * WIDTH
    start = images + tl.load(where + 4 * image)
    plane, line = tl.load(where + 4 * image + 1), tl.load(where + 4 * image + 2)
    step = tl.load(where + 4 * image + 3)
    top, left = tl.load(own + BOX).to(tl.int32), tl.load(own + BOX + 1).to(tl.int32)
    tall, wide = tl.load(own + BOX + 2), tl.load(own + BOX + 3)
    mirrored = tl.load(own + FLIP) > 0.5
    turned = tl.where(mirrored, width - 1 - columns, columns)
    scale_y, scale_x = tall / height, wide / width
    reach_y, reach_x = tl.maximum(scale_y, 1.0), tl.maximum(scale_x, 1.0)
    centre_y, centre_x = (rows + 0.5) * scale_y, (turned + 0.5) * scale_x
    first_y = tl.floor(centre_y - 2.0 * reach_y + 0.5).to(tl.int32)
    first_x = tl.floor(centre_x - 2.0 * reach_x + 0.5).to(tl.int32)
    r = tl.zeros([ROWS, COLUMNS], tl.float32)
    g, b = r, r
    total_y = tl.zeros([ROWS], tl.float32)
    total_x = tl.zeros([COLUMNS], tl.float32)
    for i in range(0, tl.ceil(4.0 * reach_y).to(tl.int32) + 1):
        y = first_y + i
        weight_y = _cubic(tl.abs(y + 0.5 - centre_y) / reach_y)
        weight_y = tl.where((y >= 0) & (y < tall), weight_y, 0.0)
        total_y += weight_y
        line_r = tl.zeros([ROWS, COLUMNS], tl.float32)
        line_g, line_b = line_r, line_r
        total_x = tl.zeros([COLUMNS], tl.float32)
        for j in range(0, tl.ceil(4.0 * reach_x).to(tl.int32) + 1):
            x = first_x + j
            weight_x = _cubic(tl.abs(x + 0.5 - centre_x) / reach_x)
            weight_x = tl.where((x >= 0) & (x < wide), weight_x, 0.0)
            total_x += weight_x
            read = inside & (weight_y != 0.0)[:, None] & (weight_x != 0.0)[None, :]
            at = start + (top + y)[:, None] * line + (left + x)[None, :] * step
            line_r += weight_x[None, :] * tl.load(at, read, 0).to(tl.float32)
            line_g += weight_x[None, :] * tl.load(at + plane, read, 0).to(tl.float32)
            line_b += weight_x[None, :] * tl.load(at + 2 * plane, read, 0).to(tl.float32)
        r += weight_y[:, None] * line_r
        g += weight_y[:, None] * line_g
        b += weight_y[:, None] * line_b
    weight = per_byte / (total_y[:, None] * total_x[None, :])
    r, g, b = _unit(r * weight), _unit(g * weight), _unit(b * weight)
    if tl.load(own + JITTER) > 0.5:
        r, g, b = _jitter(r, g, b, own, 0.0, 0)
        grey = tl.sum(tl.where(inside, _luma(r, g, b), 0.0))
        tl.store(sums + image * tl.num_programs(0) + tl.program_id(0), grey)
    at = out + image.to(tl.int64) * 3 * height * width
    at += (rows[:, None] * width + columns[None, :]) * pixel
    tl.store(at, r, inside)
    tl.store(at + channel, g, inside)
    tl.store(at + 2 * channel, b, inside)


@triton.jit
def colour_kernel(
    out, numbers, sums, tiles, size, channel, pixel, TILES: tl.constexpr, PIXELS: tl.constexpr
):
    """Contrast and the steps after it, greyscale, and solarize where no blur comes before it."""
    image = tl.program_id(1)
    own = numbers + image * WIDTH
    jitter = tl.load(own + JITTER) > 0.5
    greyscale = tl.load(own + GREYSCALE) > 0.5
    solarize = (tl.load(own + SOLARIZE) > 0.5) & (tl.load(own + BLUR) < 0.5)
    if jitter | greyscale | solarize:
        pixels = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
        inside = pixels < size
        at = out + image.to(tl.int64) * 3 * size + pixels * pixel
        r = tl.load(at, inside, 0.0)
        g = tl.load(at + channel, inside, 0.0)
        b = tl.load(at + 2 * channel, inside, 0.0)
        if jitter:
            tile = tl.arange(0, TILES)
            mean = tl.sum(tl.load(sums + image * tiles + tile, tile < tiles, 0.0)) / size
            r, g, b = _jitter(r, g, b, own, mean, 1)
        if greyscale:
            grey = 0.2989 * r + 0.587 * g + 0.114 * b
            r, g, b = grey, grey, grey
        if solarize:
            r = tl.minimum(r, 1.0 - r)
            g = tl.minimum(g, 1.0 - g)
            b = tl.minimum(b, 1.0 - b)
        tl.store(at, r, inside)
        tl.store(at + channel, g, inside)
        tl.store(at + 2 * channel, b, inside)


@triton.jit
def blur_kernel(
    source,
    target,
    numbers,
    chosen,
    height,
    width,
    channel,
    pixel,
    reach,
    ALONG_ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Blur along rows into images of their own; then along columns and back, and solarize."""
    nth = tl.program_id(1) // 3
    image = tl.load(chosen + nth)
    own = numbers + image * WIDTH
    sigma = tl.load(own + SIGMA)
    size = height * width
    given = image * 3 * size + tl.program_id(1) % 3 * channel
    between = nth.to(tl.int64) * 3 * size + tl.program_id(1) % 3 * channel
    pixels = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixels < size
    y, x = pixels // width, pixels % width
    near = tl.minimum(reach, tl.ceil(6.1 * sigma).to(tl.int32))  # beyond, weights are below 1e-8
    blurred = tl.zeros([PIXELS], tl.float32)
    total = 0.0
    for shift in range(-near, near + 1):
        away = shift / sigma
        weight = tl.exp(-0.5 * away * away)
        total += weight
        if ALONG_ROWS:
            read = tl.abs(x + shift)
            at = given + (y * width + tl.minimum(read, 2 * (width - 1) - read)) * pixel
        else:
            read = tl.abs(y + shift)
            at = between + (tl.minimum(read, 2 * (height - 1) - read) * width + x) * pixel
        blurred += weight * tl.load(source + at, inside, 0.0)
    blurred = blurred / total
    if ALONG_ROWS:
        tl.store(target + between + pixels * pixel, blurred, inside)
    else:
        if tl.load(own + SOLARIZE) > 0.5:
            blurred = tl.minimum(blurred, 1.0 - blurred)
        tl.store(target + given + pixels * pixel, blurred, inside)
