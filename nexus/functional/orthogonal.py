"""The nearest semi-orthogonal matrix by Newton-Schulz iteration, the heart of the Muon optimizer."""

from __future__ import annotations

import torch
from torch import Tensor

#: Quintic coefficients of Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024): steep at 0,
#: so that five rounds bring every singular value into about [0.7, 1.2].
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalize(matrix: Tensor, *, rounds: int) -> Tensor:
    """Replace the singular values of a matrix by values near 1.

    Runs in the matrix's own precision (Muon's authors use bfloat16, which is slow on most processors).

    Args:
        matrix: [M, N], not all zeros.
        rounds: Newton-Schulz steps; 5 is the authors' choice.

    Returns:
        [M, N], about `U @ V.T` of the singular value decomposition `U @ S @ V.T`.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (torch.linalg.matrix_norm(x) + 1e-7)
    for _ in range(rounds):
        square = x @ x.T
        x = _A * x + (_B * square + _C * square @ square) @ x
    result: Tensor = x.T if tall else x
    return result
