"""The logistic head: where every method starts, and all of the method `head`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compiler.tuning.encoder import Encoder

REGULARISATION = 10.0
"""Inverse strength C of the logistic regression; embeddings are not normalised."""


def fit_head(embeddings: Tensor, classes: Sequence[int], seed: int) -> nn.Linear:
    """Multinomial logistic regression on embeddings `[rows, width]`."""
    import numpy as np  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]  # noqa: PLC0415

    found = LogisticRegression(C=REGULARISATION, max_iter=1000, random_state=seed).fit(embeddings.numpy(), classes)
    weight, bias = found.coef_, found.intercept_
    if len(weight) == 1:  # two classes: scikit-learn keeps one row, whose opposite is the other class
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return _linear(torch.from_numpy(weight).float(), torch.from_numpy(bias).float())


def given_head(encoder: Encoder, labels: Sequence[str]) -> nn.Linear | None:
    """The head that the folder brings, its rows in the order of `labels`; None where it answers with other labels."""
    if encoder.dense is None or set(encoder.labels) != set(labels):
        return None
    weights = load_file(encoder.dense / "model.safetensors")
    order = [encoder.labels.index(label) for label in labels]
    return _linear(weights["linear.weight"].float()[order], weights["linear.bias"].float()[order])


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight.contiguous(), "bias": bias.contiguous()})
    return head
