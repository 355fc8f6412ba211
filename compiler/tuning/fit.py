"""The epochs: AdamW with warm-up and linear decay, until the validation rows get no better; best weights kept."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from compiler.progress import Reporter
from compiler.sources.huggingface import Sentence
from compiler.tuning.job import TuneJob
from compiler.tuning.network import TENTHS, Ids, Tokens, answers, is_tenth, shuffled
from wire.tune import Epoch

STEPS = TENTHS + 1
"""Steps of progress that an epoch counts for."""
WARM_UP, DECAY, CLIP = 0.1, 0.01, 1.0
"""Share of all steps in which the rate grows, weight decay, largest norm of a gradient."""
TEMPERATURE, SOFT = 2.0, 0.5
"""Distillation (Hinton 2015): how flat the teacher's answers are made, and their share of the loss."""
Loss = Callable[[Tensor, list[int]], Tensor]
"""The loss of the logits `[batch, classes]` of the training rows in these places."""


@dataclass(frozen=True)
class Coded:
    """Rows as the network takes them: token ids and class numbers `[rows]`."""

    ids: Sequence[Ids]
    classes: Tensor


def label_loss(classes: Tensor) -> Loss:
    """Cross-entropy with the labels."""
    return lambda logits, rows: cross_entropy(logits, classes[rows])


def teacher_loss(classes: Tensor, taught: Tensor) -> Loss:
    """Cross-entropy with the labels, and the divergence from the teacher's logits `taught` `[rows, classes]`."""
    soft = log_softmax(taught / TEMPERATURE, dim=1)

    def loss(logits: Tensor, rows: list[int]) -> Tensor:
        mine = log_softmax(logits / TEMPERATURE, dim=1)
        apart = kl_div(mine, soft[rows], reduction="batchmean", log_target=True) * TEMPERATURE**2
        return (1 - SOFT) * cross_entropy(logits, classes[rows]) + SOFT * apart

    return loss


def fit(
    network: Sentence, train: Coded, held: Coded, loss: Loss, tokens: Tokens, job: TuneJob, report: Reporter
) -> tuple[tuple[Epoch, ...], int]:
    """Train in place; the epochs, and the number of the one whose weights the network has at the end.

    Epoch 0 is the network as it came: training that does harm is not kept.
    """
    torch.manual_seed(job.seed)
    order = random.Random(job.seed)  # noqa: S311  an order of rows, not a secret
    weights = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=job.rate, weight_decay=DECAY)
    steps = job.epochs * math.ceil(len(train.ids) / job.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    epochs = [_judge(network, held, tokens, 0, None, 0.0)]
    best, kept = epochs[0], _copy(weights)
    for number in range(1, job.epochs + 1):
        started = time.monotonic()
        message = f"epoch {number} of at most {job.epochs}, best so far {best.accuracy:.3f}"
        with report.stage(message, STEPS):
            mean = _epoch(
                network, train, loss, tokens, job, order, (optimiser, schedule), partial(report.tick, message)
            )
            epochs.append(_judge(network, held, tokens, number, mean, started))
        if _better(epochs[-1], best):
            best, kept = epochs[-1], _copy(weights)
        elif number - best.number >= job.patience:
            report.more(-STEPS * (job.epochs - number))
            break
    with torch.no_grad():
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)
    return tuple(epochs), best.number


def _epoch(
    network: Sentence,
    train: Coded,
    loss: Loss,
    tokens: Tokens,
    job: TuneJob,
    order: random.Random,
    steering: tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler],
    tick: Callable[[], None],
) -> float:
    """One pass over the training rows; the mean loss."""
    optimiser, schedule = steering
    network.train()
    total = 0.0
    batches = list(shuffled(train.ids, job.batch, order))
    for n, places in enumerate(batches, 1):
        value = loss(network(*tokens.batch([train.ids[i] for i in places])), places)
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_((p for p in network.parameters() if p.requires_grad), CLIP)
        optimiser.step()
        schedule.step()
        total += float(value.detach()) * len(places)
        if is_tenth(n, len(batches)):
            tick()
    return total / len(train.ids)


def _judge(network: Sentence, held: Coded, tokens: Tokens, number: int, loss: float | None, started: float) -> Epoch:
    logits = answers(network, held.ids, tokens)
    return Epoch(
        number=number,
        accuracy=float((logits.argmax(1) == held.classes).float().mean()),
        validation_loss=float(cross_entropy(logits, held.classes)),
        seconds=time.monotonic() - started if number else 0.0,
        loss=loss,
    )


def _better(one: Epoch, other: Epoch) -> bool:
    return (one.accuracy, -one.validation_loss) > (other.accuracy, -other.validation_loss)


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate in a step: up to 1, and down to 0 in a straight line."""
    warm = max(1, round(WARM_UP * steps))
    return (step + 1) / warm if step < warm else max(0.0, (steps - step) / max(1, steps - warm))


def _copy(weights: Sequence[Tensor]) -> list[Tensor]:
    return [weight.detach().clone() for weight in weights]
