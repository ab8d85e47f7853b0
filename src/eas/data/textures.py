"""Fifteen procedural textures, each a height field in 0..1 that blends two random colours."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

TEXTURES = (
    "lines", "bars", "diagonal", "checks", "dots", "rings", "grid", "waves",
    "zigzag", "bricks", "noise", "clouds", "gradient", "spiral", "rays",
)  # fmt: skip

Field = NDArray[np.floating[Any]]


def texture(rng: np.random.Generator, name: str, side: int) -> NDArray[np.uint8]:
    """A picture, (side, side, 3), of the named texture; period, phase, tilt and colours are random."""
    while True:
        colours = rng.uniform(0, 255, size=(2, 3))
        if abs(colours[0].mean() - colours[1].mean()) > 60:
            break
    height = np.clip(_height(rng, name, side), 0, 1)[..., None]
    blend = colours[0] + height * (colours[1] - colours[0]) + rng.normal(scale=6, size=(side, side, 3))
    pixels: NDArray[np.uint8] = np.clip(blend, 0, 255).astype(np.uint8)
    return pixels


def _edge(wave: Field) -> Field:
    """Turn a wave in -1..1 into two levels with a soft border."""
    return 0.5 + 2 * wave


def _height(rng: np.random.Generator, name: str, side: int) -> Field:
    y, x = np.mgrid[:side, :side] + rng.uniform(0, side, size=(2, 1, 1))
    turn = 2 * np.pi / rng.uniform(6, 12)
    centre_y, centre_x = rng.uniform(0.25, 0.75, size=2) * side
    rows, columns = np.mgrid[:side, :side]
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
            return rng.random((side, side))
        case "clouds":
            coarse = rng.normal(size=(side, side))
            smooth = np.exp(-0.5 * (4 * 2 * np.pi * np.fft.fftfreq(side)) ** 2)
            field: Field = np.fft.ifft2(np.fft.fft2(coarse) * smooth[:, None] * smooth).real
            field *= 0.35 / field.std()
            return 0.5 + field
        case "gradient":
            heading = rng.uniform(0, 2 * np.pi)
            slope: Field = (rows - side / 2) * np.sin(heading) + (columns - side / 2) * np.cos(heading)
            return 0.5 + slope / side
        case "spiral":
            return _edge(np.sin(turn * radius + rng.choice((-1, 1)) * angle))
        case "rays":
            return _edge(np.sin(rng.integers(5, 10) * angle + turn * y[0, 0]))
    raise ValueError(f"unknown texture {name!r}")
