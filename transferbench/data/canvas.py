"""Pictures of one textured object before a cluttered background, drawn in batches.

A shape is a signed distance (negative inside), a texture a wave whose sign picks one of two
colours. Both are evaluated on a grid of twice the size of the picture and given soft edges one
sample wide, so that no edge is jagged. Lengths are in pixels of the finished picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

# float32 throughout; NumPy's annotations do not follow that through its functions.
Floats = npt.NDArray[Any]
Draw = np.random.Generator

SIDE = 32
OVERSAMPLING = 2
# Raised whenever the same seed would give another picture.
VERSION = 1


def draw(
    shapes: npt.NDArray[np.int64], textures: npt.NDArray[np.int64], generator: Draw
) -> npt.NDArray[np.uint8]:
    """Draw one picture for each pair of a shape and a texture.

    Everything else (colours, which of a texture's two colours is the lighter, position, size,
    rotation, stretch, background, clutter) is drawn from `generator`, independently of both.

    Parameters
    ----------
    shapes, textures : int64 arrays (B,)
        Positions in `SHAPES` and `TEXTURES`.

    Returns
    -------
    uint8 array (B, 32, 32, 3)
    """
    count = len(shapes)
    x, y = _grid(OVERSAMPLING)
    radius = _uniform(generator, count, 11.0, 14.5)
    reach = 15.5 - radius
    u = x - _uniform(generator, count, -1, 1) * reach
    v = y - _uniform(generator, count, -1, 1) * reach
    a, b = _rotated(u, v, _uniform(generator, count, 0, 2 * np.pi))
    stretch = np.exp(_uniform(generator, count, -0.1, 0.1))
    a, b = _rotated(a * stretch, b / stretch, _uniform(generator, count, 0, 2 * np.pi))
    distance = _each(SHAPES, shapes, a / radius, b / radius) * radius
    wave = _texture(textures, u, v, generator)

    # Shares of a pixel that background, rim and either colour take; colours are mixed afterwards.
    object_share = _soft(-distance, OVERSAMPLING)
    rim_share = object_share * _soft(0.6 - np.abs(distance + 0.6), OVERSAMPLING) * 0.6
    light_share = (object_share - rim_share) * _soft(wave, OVERSAMPLING)
    object_share, rim_share, light_share = map(_reduced, (object_share, rim_share, light_share))

    base = _uniform(generator, count, 0.15, 0.85)
    picture = _background(base, generator)
    light, dark = _two_tones(base, generator)
    rim = np.where(generator.random((count, 1, 1, 1)) < 0.5, 0, 1).astype(np.float32)
    picture *= 1 - object_share
    picture += rim * rim_share + light * light_share
    picture += dark * (object_share - rim_share - light_share)
    picture += 0.01 * generator.standard_normal(picture.shape, dtype=np.float32)
    pixels: npt.NDArray[np.uint8] = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return pixels


def _grid(oversampling: int) -> tuple[Floats, Floats]:
    """Coordinates of the samples from the picture's middle, each (1, S, S)."""
    line = (np.arange(SIDE * oversampling, dtype=np.float32) + 0.5) / oversampling - SIDE / 2
    y, x = np.meshgrid(line, line, indexing="ij")
    return x[None], y[None]


def _uniform(generator: Draw, count: int, low: float, high: float) -> Floats:
    return generator.uniform(low, high, (count, 1, 1)).astype(np.float32)


def _rotated(x: Floats, y: Floats, angle: Floats) -> tuple[Floats, Floats]:
    c, s = np.cos(angle), np.sin(angle)
    return c * x + s * y, c * y - s * x


def _soft(distance: Floats, oversampling: int = 1) -> Floats:
    """Coverage 0..1 of a sample that lies `distance` inside an edge."""
    return np.clip(distance * oversampling + 0.5, 0, 1)


def _reduced(share: Floats) -> Floats:
    """Average samples to pixels, (B, S, S) to (B, 32, 32, 1)."""
    rows = share[:, ::2] + share[:, 1::2]
    pixels: Floats = (rows[:, :, ::2] + rows[:, :, 1::2]) * 0.25
    return pixels[..., None]


def _each(
    kinds: Mapping[str, Callable[..., Floats]], chosen: npt.NDArray[np.int64], *inputs: Floats
) -> Floats:
    """Evaluate for every picture the function of its kind."""
    result = np.empty(inputs[0].shape, np.float32)
    for kind, function in enumerate(kinds.values()):
        rows = np.flatnonzero(chosen == kind)
        if len(rows):
            result[rows] = function(*(i[rows] for i in inputs))
    return result


# Shapes: signed distance in units of the radius. All cover the same area, so that the number of
# pixels of an object does not tell its shape.


def _disc(a: Floats, b: Floats) -> Floats:
    return np.hypot(a, b) - 0.818


def _square(a: Floats, b: Floats) -> Floats:
    return np.maximum(np.abs(a), np.abs(b)) - 0.725


def _triangle(a: Floats, b: Floats) -> Floats:
    return np.maximum(np.abs(a) * 0.866 + b * 0.5, -b) - 0.636


def _star(a: Floats, b: Floats) -> Floats:
    sector, tip, notch = 2 * np.pi / 5, 1.26, 0.567
    angle = np.abs((np.arctan2(b, a) + sector / 2) % sector - sector / 2)
    r = np.hypot(a, b)
    # The edge runs from the tip to the notch at half a sector.
    nx, ny = notch * np.sin(sector / 2), tip - notch * np.cos(sector / 2)
    distance: Floats = ((r * np.cos(angle) - tip) * nx + r * np.sin(angle) * ny) / np.hypot(nx, ny)
    return distance


def _cross(a: Floats, b: Floats) -> Floats:
    a, b = np.abs(a), np.abs(b)
    return np.minimum(np.maximum(a - 0.945, b - 0.335), np.maximum(b - 0.945, a - 0.335))


def _ring(a: Floats, b: Floats) -> Floats:
    return np.abs(np.hypot(a, b) - 0.605) - 0.276


def _crescent(a: Floats, b: Floats) -> Floats:
    return np.maximum(np.hypot(a + 0.1, b) - 1.03, 0.7 - np.hypot(a - 0.5, b))


def _heart(a: Floats, b: Floats) -> Floats:
    a, b = np.abs(a), b + 0.1
    diamond = (a + np.abs(b) - 0.767) * 0.707
    return np.minimum(diamond, np.hypot(a - 0.3835, b - 0.3835) - 0.5424)


SHAPES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "crescent": _crescent,
    "heart": _heart,
}

# Textures: positive where the lighter colour is, about the distance from the nearest edge; each
# covers about half of the area with either colour.


def _texture(chosen: npt.NDArray[np.int64], u: Floats, v: Floats, generator: Draw) -> Floats:
    count = len(chosen)
    period = _uniform(generator, count, 6.0, 8.0)
    a, b = _rotated(u, v, _uniform(generator, count, 0, 2 * np.pi))
    phases = generator.uniform(0, 1, (count, 12)).astype(np.float32)[:, :, None, None]
    polarity = np.where(generator.random((count, 1, 1)) < 0.5, -1, 1).astype(np.float32)
    bias = _uniform(generator, count, -0.35, 0.35)
    return (_each(TEXTURES, chosen, a, b, period, phases) + bias) * polarity


def _sine(t: Floats, period: Floats) -> Floats:
    return np.sin(t * (2 * np.pi / period)) * (period / (2 * np.pi))


def _stripes(a: Floats, b: Floats, p: Floats, phases: Floats) -> Floats:
    return _sine(a + phases[:, 0] * p, p)


def _checks(a: Floats, b: Floats, p: Floats, phases: Floats) -> Floats:
    q = p * 1.5
    one, two = _sine(a + phases[:, 0] * q, q), _sine(b + phases[:, 1] * q, q)
    return one * two * (2 * np.pi / q)


def _dots(a: Floats, b: Floats, p: Floats, phases: Floats) -> Floats:
    q = p * 1.1
    row = np.floor(b / q + phases[:, 0])
    x = (a / q + phases[:, 1] + 0.5 * (row % 2)) % 1 - 0.5
    y = (b / q + phases[:, 0]) % 1 - 0.5
    return (0.38 - np.hypot(x, y)) * q


def _rings(a: Floats, b: Floats, p: Floats, phases: Floats) -> Floats:
    r = np.hypot(a + (phases[:, 1] - 0.5) * 4, b + (phases[:, 2] - 0.5) * 4)
    return _sine(r + phases[:, 0] * p, p)


def _zigzag(a: Floats, b: Floats, p: Floats, phases: Floats) -> Floats:
    q = p * 1.7
    bend = np.abs((a / q + phases[:, 1]) % 1 - 0.5) * q * 1.7
    return _sine(b + bend + phases[:, 0] * p, p)


def _blotches(a: Floats, b: Floats, p: Floats, phases: Floats) -> Floats:
    total = np.zeros_like(a)
    for i in range(6):
        turn = 2 * np.pi * (i + phases[:, i]) / 6
        total += _sine(a * np.cos(turn) + b * np.sin(turn) + phases[:, i + 6] * p * 1.3, p * 1.3)
    return total * 0.6


def _spokes(a: Floats, b: Floats, p: Floats, phases: Floats) -> Floats:
    a, b = a + (phases[:, 1] - 0.5) * 4, b + (phases[:, 2] - 0.5) * 4
    n = np.floor(5 + phases[:, 0] * 3)
    wave: Floats = np.sin(np.arctan2(b, a) * n) * np.hypot(a, b) / n
    return wave


def _bricks(a: Floats, b: Floats, p: Floats, phases: Floats) -> Floats:
    height, width = p * 0.95, p * 1.7
    row = b / height + phases[:, 0]
    y = np.abs(row % 1 - 0.5) * height
    x = np.abs((a / width + phases[:, 1] + 0.5 * (np.floor(row) % 2)) % 1 - 0.5) * width
    return np.minimum(height / 2 - y, width / 2 - x) - 0.15 * p


TEXTURES: dict[str, Callable[[Floats, Floats, Floats, Floats], Floats]] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "rings": _rings,
    "zigzag": _zigzag,
    "blotches": _blotches,
    "spokes": _spokes,
    "bricks": _bricks,
}


def _color(generator: Draw, lightness: Floats) -> Floats:
    """A random hue and saturation of a given lightness, (B, 1, 1, 3)."""
    count = len(lightness)
    tint = generator.uniform(-1, 1, (count, 1, 1, 3)).astype(np.float32)
    tint -= tint.mean(axis=-1, keepdims=True)
    color: Floats = np.clip(lightness[..., None] + 0.15 * tint, 0, 1)
    return color


def _two_tones(base: Floats, generator: Draw) -> tuple[Floats, Floats]:
    count = len(base)
    gap = _uniform(generator, count, 0.4, 0.6)
    away = _uniform(generator, count, 0.15, 0.35)
    middle = np.where(base > 0.5, base - away, base + away)
    return _color(generator, middle + gap / 2), _color(generator, middle - gap / 2)


def _background(base: Floats, generator: Draw) -> Floats:
    x, y = _grid(1)
    count = len(base)
    first = _color(generator, base)
    second = _color(generator, np.clip(base + _uniform(generator, count, -0.2, 0.2), 0, 1))
    across, _ = _rotated(x, y, _uniform(generator, count, 0, 2 * np.pi))
    picture = first + (second - first) * np.clip(across / 32 + 0.5, 0, 1)[..., None]
    for _ in range(2):
        _clutter(picture, x, y, base, generator)
    return picture


def _clutter(picture: Floats, x: Floats, y: Floats, base: Floats, generator: Draw) -> None:
    """Lay a bar or a blob of a random size and colour on every picture."""
    count = len(picture)
    u, v = x - _uniform(generator, count, -17, 17), y - _uniform(generator, count, -17, 17)
    a, b = _rotated(u, v, _uniform(generator, count, 0, 2 * np.pi))
    length, width = _uniform(generator, count, 1, 6), _uniform(generator, count, 0.8, 2.5)
    distance = np.hypot(np.maximum(np.abs(a) - length, 0), b) - width
    lightness = np.clip(base + _uniform(generator, count, -0.25, 0.25), 0, 1)
    color = _color(generator, lightness)
    picture += (color - picture) * _soft(-distance)[..., None]
