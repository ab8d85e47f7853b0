"""Fifteen procedural textures, each a height field in 0..1 that blends two random colours.

A texture is defined on a square of 48 x 48 units, whatever number of pixels it is drawn with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TEXTURES = (
    "lines", "bars", "diagonal", "checks", "dots", "rings", "grid", "waves",
    "zigzag", "bricks", "noise", "clouds", "gradient", "spiral", "rays",
)  # fmt: skip

UNITS = 48
"""The side of a picture, in units."""
Field = NDArray[np.floating[Any]]


def texture(rng: np.random.Generator, name: str, side: int) -> NDArray[np.uint8]:
    """A picture, (side, side, 3), of the named texture; period, phase, tilt and colours are random.

    The same generator gives the same texture on every side.
    """
    while True:
        colours = rng.uniform(0, 255, size=(2, 3))
        if abs(colours[0].mean() - colours[1].mean()) > 60:
            break
    height = np.clip(_height(rng, name, side), 0, 1)[..., None]
    blend = (
        colours[0] + height * (colours[1] - colours[0]) + enlarged(rng.normal(scale=6, size=(UNITS, UNITS, 3)), side)
    )
    pixels: NDArray[np.uint8] = np.clip(blend, 0, 255).astype(np.uint8)
    return pixels


def enlarged(field: Field, side: int) -> Field:
    """A field of one value per unit, drawn as squares with (side, side) pixels."""
    unit = np.arange(side) * UNITS // side
    return field[unit][:, unit]


def _edge(wave: Field) -> Field:
    """Turn a wave in -1..1 into two levels with a soft border."""
    return 0.5 + 2 * wave


def _height(rng: np.random.Generator, name: str, side: int) -> Field:
    rows, columns = np.mgrid[:side, :side] * (UNITS / side)
    down, right = rng.uniform(0, UNITS, size=2)
    y, x = rows + down, columns + right
    turn = 2 * np.pi / rng.uniform(6, 12)
    centre_y, centre_x = rng.uniform(0.25, 0.75, size=2) * UNITS
    radius, angle = np.hypot(rows - centre_y, columns - centre_x), np.arctan2(rows - centre_y, columns - centre_x)
    tilt = rng.uniform(-0.15, 0.15)
    match name:
        case "lines":
            return _edge(np.sin(turn * (y + tilt * x)))
        case "bars":
            return _edge(np.sin(turn * (x + tilt * y)))
        case "diagonal":
            return _edge(np.sin(turn * (x + rng.choice((-1, 1)) * y) * 0.7))
        case "checks":
            return _edge(np.sin(turn * x) * np.sin(turn * y))
        case "dots":
            return _edge(np.cos(turn * x) + np.cos(turn * y) - 0.9)
        case "rings":
            return _edge(np.sin(turn * radius))
        case "grid":
            return _edge(np.maximum(np.cos(turn * x), np.cos(turn * y)) - 0.75)
        case "waves":
            return _edge(np.sin(turn * y + 2.5 * np.sin(turn * x / 2)))
        case "zigzag":
            return _edge(np.sin(turn * y + 2 * np.arcsin(np.sin(turn * x / 2))))
        case "bricks":
            course = np.floor(y * turn / np.pi)
            mortar = np.maximum(np.cos(2 * turn * y), np.cos(turn * x + np.pi * (course % 2)))
            return _edge(0.8 - mortar)
        case "noise":
            return enlarged(rng.random((UNITS, UNITS)), side)
        case "clouds":
            coarse = rng.normal(size=(UNITS, UNITS))
            smooth = np.exp(-0.5 * (4 * 2 * np.pi * np.fft.fftfreq(UNITS)) ** 2)
            field: Field = np.fft.ifft2(np.fft.fft2(coarse) * smooth[:, None] * smooth).real
            field *= 0.35 / field.std()
            return 0.5 + np.asarray(Image.fromarray(field.astype(np.float32)).resize((side, side)))
        case "gradient":
            heading = rng.uniform(0, 2 * np.pi)
            slope: Field = (rows - UNITS / 2) * np.sin(heading) + (columns - UNITS / 2) * np.cos(heading)
            return 0.5 + slope / UNITS
        case "spiral":
            return _edge(np.sin(turn * radius + rng.choice((-1, 1)) * angle))
        case "rays":
            return _edge(np.sin(rng.integers(5, 10) * angle + turn * y[0, 0]))
    raise ValueError(f"unknown texture {name!r}")
