"""From an encoder and rows to a trained network, by each method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compiler.progress import Reporter
from compiler.sources.huggingface import Sentence
from compiler.sources.source import HuggingFace
from compiler.tuning.data import Data, Labelled
from compiler.tuning.encoder import Encoder
from compiler.tuning.fit import STEPS, Coded, Loss, fit, label_loss, teacher_loss
from compiler.tuning.head import fit_head, given_head
from compiler.tuning.job import TuneJob
from compiler.tuning.network import TENTHS, Tokens, answers, load, merge_lora, student, with_lora
from wire.tune import Epoch


@dataclass(frozen=True)
class Trained:
    """A network with its head, how its training went, and the classes that it gives the validation rows."""

    network: Sentence
    epochs: tuple[Epoch, ...]
    epoch: int | None
    answered: tuple[int, ...]


def steps(job: TuneJob) -> int:
    """Steps of progress of `train`."""
    return TENTHS + 2 + (0 if job.method == "head" else STEPS * job.epochs)


def train(job: TuneJob, encoder: Encoder, data: Data, report: Reporter) -> Trained:
    """Deterministic: one thread, one seed, and rows whose order the file does not decide.

    Raises `Malformed` or `Incompatible` for an encoder that does not load, or that the method cannot train.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    network, tokens = load(encoder, job.seed), Tokens(encoder)
    learned, held = _coded(data.train, data, tokens), _coded(data.validation, data, tokens)
    embeddings = _embed(network, learned, tokens, report)
    report.step("training the head")
    given = given_head(encoder, data.labels) if job.method == "distill" else None
    network.dense = given or fit_head(embeddings, learned.classes.tolist(), job.seed)
    epochs: tuple[Epoch, ...] = ()
    best = None
    if job.method != "head":
        network, loss = _start(job, encoder, network, embeddings, learned.classes)
        epochs, best = fit(network, learned, held, loss, tokens, job, report)
        if job.method == "lora":
            merge_lora(network)
    report.step("answering the validation rows")
    answered = answers(network, held.ids, tokens).argmax(1).tolist() if held.ids else []
    return Trained(network.eval(), epochs, best, tuple(answered))


def _start(
    job: TuneJob, encoder: Encoder, network: Sentence, embeddings: Tensor, classes: Tensor
) -> tuple[Sentence, Loss]:
    """What is trained, and by which loss. `embeddings` are the network's, before its head."""
    match job.method:
        case "distill":
            assert network.dense is not None
            with torch.no_grad():
                taught = network.dense(embeddings)
            kind = HuggingFace(config=encoder.config, pooling=encoder.pooling)
            return student(network, kind, job.student_layers), teacher_loss(classes, taught)
        case "lora":
            with_lora(network)
    return network, label_loss(classes)


def _embed(network: Sentence, rows: Coded, tokens: Tokens, report: Reporter) -> Tensor:
    message = f"embedding {len(rows.ids)} texts"
    with report.stage(message, TENTHS):
        return answers(network, rows.ids, tokens, lambda: report.tick(message))


def _coded(rows: Sequence[Labelled], data: Data, tokens: Tokens) -> Coded:
    classes = torch.tensor([data.labels.index(row.label) for row in rows], dtype=torch.int64)
    return Coded(tokens.ids([row.text for row in rows]), classes)
