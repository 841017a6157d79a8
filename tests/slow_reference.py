"""A slow copy of views and bank from their definitions: one image and one cell at a time.

It shares no code with the library. Coordinates are fractions of the full image.
"""

import math

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def divergence(logit, target):
    """Kullback-Leibler, of a target from sigmoid(logit); 0 log 0 is 0."""
    p = sigmoid(logit)
    with np.errstate(all="ignore"):
        return sum(np.nan_to_num(t * np.log(t / q)) for t, q in ((target, p), (1 - target, 1 - p)))


def value_at(plane, x, y):
    """Bilinear value of `plane` (H, W) at fractions (x, y); past the outer centres, the border's.

    Cell (row, col) has its centre at ((col + 0.5) / W, (row + 0.5) / H).
    """
    height, width = plane.shape
    x = min(max(x * width - 0.5, 0.0), width - 1.0)
    y = min(max(y * height - 0.5, 0.0), height - 1.0)
    left, top = math.floor(x), math.floor(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    upper = (1 - (x - left)) * plane[top, left] + (x - left) * plane[top, right]
    lower = (1 - (x - left)) * plane[bottom, left] + (x - left) * plane[bottom, right]
    return (1 - (y - top)) * upper + (y - top) * lower


def crop(plane, box, flipped, size):
    """T_v: what the view shows of `plane`, on a grid of `size` cells a side."""
    x0, y0, x1, y1 = (float(v) for v in box)
    out = np.empty((size, size))
    for row in range(size):
        for col in range(size):
            across, down = (col + 0.5) / size, (row + 0.5) / size
            if flipped:
                across = 1 - across
            out[row, col] = value_at(plane, x0 + across * (x1 - x0), y0 + down * (y1 - y0))
    return out


def uncrop(plane, box, flipped, size):
    """T_v^-1: the view's `plane` on the full image's grid; NaN where the view shows nothing."""
    x0, y0, x1, y1 = (float(v) for v in box)
    out = np.full((size, size), np.nan)
    for row in range(size):
        for col in range(size):
            x, y = (col + 0.5) / size, (row + 0.5) / size
            if x0 <= x <= x1 and y0 <= y <= y1:
                across, down = (x - x0) / (x1 - x0), (y - y0) / (y1 - y0)
                out[row, col] = value_at(plane, 1 - across if flipped else across, down)
    return out


class SlowBank:
    """Running averages in float64: NaN until seen, then the first value whole, then averaged."""

    def __init__(self, num_images, num_classes, size, momentum):
        self.maps = np.full((num_images, num_classes, size, size), np.nan)
        self.size, self.momentum = size, momentum

    def update(self, image, box, flipped, maps):
        """`maps` (C, G, G) of one image."""
        for c, plane in enumerate(maps):
            new = uncrop(plane, box, flipped, self.size)
            for cell in np.argwhere(~np.isnan(new)):
                place = (image, c, *cell)
                old, value = self.maps[place], new[tuple(cell)]
                average = self.momentum * old + (1 - self.momentum) * value
                self.maps[place] = value if np.isnan(old) else average

    def read(self, image, box, flipped, grid):
        """Target (C, G, G), normalised over what has been seen, and the share that was (G, G)."""
        seen = (~np.isnan(self.maps[image, 0])).astype(float)
        share = crop(seen, box, flipped, grid)
        known = [crop(np.nan_to_num(plane), box, flipped, grid) for plane in self.maps[image]]
        return np.stack(known) / np.maximum(share, 1e-9), share
