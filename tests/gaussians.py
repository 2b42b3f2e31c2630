"""Data that are a Gaussian N(m, S): their exact denoiser is linear, so samplers can be followed in closed form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

MEAN = np.array([0.3, -0.7, 1.1])
COVARIANCE = np.array([[0.5, 0.2, -0.1], [0.2, 0.4, 0.05], [-0.1, 0.05, 0.09]])
VARIANCES, AXES = np.linalg.eigh(COVARIANCE)


def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """E[clean | x] of rows x [B, 3], each at its own level [B]."""
    clean = [
        MEAN + COVARIANCE @ np.linalg.solve(COVARIANCE + s**2 * np.eye(3), row - MEAN)
        for row, s in zip(x.numpy(), sigma.numpy(), strict=True)
    ]
    return torch.tensor(np.array(clean))


def velocity(x: Tensor, tau: Tensor) -> Tensor:
    """E[data - noise | (1 - tau) noise + tau data = x] of rows x [B, 3], from their joint covariance."""
    found = []
    for row, t in zip(x.numpy(), tau.numpy(), strict=True):
        cross, total = t * COVARIANCE - (1 - t) * np.eye(3), t**2 * COVARIANCE + (1 - t) ** 2 * np.eye(3)
        found.append(MEAN + cross @ np.linalg.solve(total, row - t * MEAN))
    return torch.tensor(np.array(found))


def affine(f: Callable[[Tensor], Tensor], size: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """(A [out, size], b [out]) of an affine f on rows [B, size], read off the unit vectors."""
    found = f(torch.cat([torch.zeros(1, size), torch.eye(size)]).double()).numpy()
    return (found[1:] - found[0]).T, found[0]


def along_axes(factors: np.ndarray) -> np.ndarray:
    """The matrix that scales the principal axes of the data by `factors` [3]."""
    return AXES @ np.diag(factors) @ AXES.T
