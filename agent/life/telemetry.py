"""Telemetry: windows of time, kept on disk before anything is sent, delivered exactly once.

    record -> StateFile (boot, seq) -> signed batch -> broker -> fleet -> signed Ack -> forgotten here

What waits is kept by the rules of `agent.store.streams`. One batch is unacknowledged at a time, alarms before samples.
A lost batch or a lost Ack means the same records again under a new number and nonce, each time after twice the pause:
somebody pays for the line. The fleet stores each `(boot, seq)` once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from agent.errors import Malformed, NotFound, Unavailable
from agent.life.agreement import AgreementMeter
from agent.life.beside import ShadowMeter
from agent.life.shapes import ShapeMeter, is_due
from agent.line.voice import Voice
from agent.store.queue import Queued
from agent.store.state import StateFile
from agent.store.streams import BATCH_BYTES, EVENT, HEALTH, INFERENCE
from agent.trust.acks import Acks
from wire import topics
from wire.agreement import Agreement
from wire.errors import WireError
from wire.life import DeviceEvent
from wire.messages import Health, InferenceStats, TelemetryBatch, TelemetryRecord
from wire.orders import Ack
from wire.sketch import Sketch
from wire.units import show_instant

if TYPE_CHECKING:
    from wire.processing import Result

log = logging.getLogger("agent.life.telemetry")

LONGEST_PAUSE: Final = 300.0
"""Seconds between two sendings of a batch that nobody answers."""
RECENT_ANSWERS: Final = 1000
"""Answers that feedback can still be given on."""
HELD: Final = 100
"""Records kept in memory while the disk takes none."""
LONGEST_TEXT: Final = 600
"""Characters of an event."""
FOLD: Final = 512
"""Samples kept before they are folded into a sketch."""


@dataclass
class _Tally:
    """One model's window."""

    errors: int = 0
    requests: int = 0
    latencies: list[float] = field(default_factory=list)
    latency: Sketch = field(default_factory=Sketch)
    feedback_total: int = 0
    feedback_correct: int = 0

    def fold(self) -> None:
        self.latency = self.latency.merge(Sketch.of(self.latencies))
        self.latencies = []

    def stats(self, model: str, digest: str) -> InferenceStats:
        self.fold()
        return InferenceStats(
            model=model,
            digest=digest,
            requests=self.requests,
            errors=self.errors,
            latency_ms=self.latency,
            feedback_total=self.feedback_total,
            feedback_correct=self.feedback_correct,
        )


class WindowMeter:
    """Counts the open window, by model and digest. Holds no text, ever: labels, scores and times only."""

    def __init__(self) -> None:
        self._window: dict[tuple[str, str], _Tally] = {}
        self._recent: OrderedDict[str, tuple[str, str, str | None]] = OrderedDict()
        self.agreement = AgreementMeter()
        self._shapes = ShapeMeter()
        self.beside = ShadowMeter()

    def _of(self, model: str, digest: str) -> _Tally:
        tally = self._window.get((model, digest))
        if tally is None:
            tally = self._window[model, digest] = _Tally()
        return tally

    def answered(self, model: str, digest: str, latency_ms: float, results: tuple[Result, ...]) -> None:
        """A request got its answer."""
        tally = self._of(model, digest)
        tally.requests += 1
        tally.latencies.append(latency_ms)
        self._shapes.answered((model, digest), results)
        if len(tally.latencies) >= FOLD:
            tally.fold()

    def failed(self, model: str, digest: str) -> None:
        """A request got none, by the model's fault."""
        tally = self._of(model, digest)
        tally.requests += 1
        tally.errors += 1

    def remember(self, request: str, model: str, digest: str, label: str | None) -> None:
        """An answer on which feedback may come; `label`: None where it has not one."""
        self._recent[request] = (model, digest, label)
        while len(self._recent) > RECENT_ANSWERS:
            self._recent.popitem(last=False)

    def feedback(self, request: str, label: str | None, score: float | None = None) -> bool:
        """The true label of an earlier answer, or how right it was from 0 to 1; whether it counts as right.

        A score does from 0.5 on. Raises `NotFound`, and `Malformed` for a label of an answer that has not one; once
        per answer.
        """
        if request not in self._recent:
            raise NotFound(f"request {request[:80]!r}: not among the last {RECENT_ANSWERS} answers without feedback")
        model, digest, answered = self._recent[request]
        if score is None and answered is None:
            raise Malformed(f"request {request[:80]!r}: its answer has not one label: give a score from 0 to 1")
        del self._recent[request]
        correct = score >= 0.5 if score is not None else answered == label
        tally = self._of(model, digest)
        tally.feedback_total += 1
        tally.feedback_correct += correct
        self.agreement.labelled(request, right=correct)
        return correct

    def close(self, *, shapes: bool = True) -> tuple[InferenceStats, ...]:
        """What the window held, with the `shapes` of all since they were told last; the next one is empty."""
        beside, looks = self.agreement.close(), self._shapes.close() if shapes else {}
        for key in (*beside, *looks):
            self._of(*key)
        window, self._window = self._window, {}
        answered = (
            replace(_with(tally.stats(*key), *beside.get(key, ((), {}))), **looks.get(key, {}))
            for key, tally in sorted(window.items())
        )
        return (*answered, *self.beside.close())


def _with(stats: InferenceStats, agreement: tuple[Agreement, ...], routes: dict[str, int]) -> InferenceStats:
    return replace(stats, agreement=agreement, routes=routes) if agreement or routes else stats


class _Held:
    """Records that the disk has not taken yet: alarms outlast samples, and what there is no room for is counted."""

    def __init__(self) -> None:
        self.records: list[Queued] = []
        self.lost: Counter[str] = Counter()

    def add(self, record: Queued) -> None:
        self.records.append(record)
        if len(self.records) > HELD:
            samples = (i for i, one in enumerate(self.records) if one.stream != EVENT)
            self.lost[self.records.pop(next(samples, 0)).stream] += 1

    def clear(self) -> None:
        self.records, self.lost = [], Counter()


class Recorder:
    """Makes records and keeps them on disk. `seq` counts from 1 within the boot, over all streams.

    `sure` says whether `now` is the fleet's time: only then does anything expire. `shapes`: seconds between two records
    that hold what inputs and answers look like.
    """

    def __init__(
        self,
        state: StateFile,
        meter: WindowMeter,
        *,
        boot: str,
        limit: int,
        now: Callable[[], datetime],
        health: Callable[[], Health],
        sure: Callable[[], bool] = lambda: False,
        shapes: float = 3600.0,
    ) -> None:
        self._state = state
        self._meter = meter
        self._boot = boot
        self._limit = limit
        self._now = now
        self._health = health
        self._sure = sure
        self._shapes = shapes
        self._seq = 0
        self._start = now()
        self._held = _Held()
        self._refused_since: datetime | None = None
        self._throttled = False

    def close_window(self) -> None:
        """Store what was since the last time: health, and what the models did, in more records when many answered.

        Raises `Unavailable` for the disk; what it did not take is held for the next time.
        """
        start, self._start = self._start, self._now()
        health = self._health()
        stats = self._meter.close(shapes=is_due(start, self._start, self._shapes))
        for inference in _in_batches(stats):
            self._make(INFERENCE, start, self._start, inference=inference)
        self._make(HEALTH, start, self._start, health=health)
        self._note_throttling(health)
        self._store()

    def event(self, kind: str, text: str) -> None:
        """Something that people should know of: it is sent before all samples. Raises as `close_window`."""
        self._make_event(kind, text)
        self._store()

    def _note_throttling(self, health: Health) -> None:
        throttled = health.machine is not None and bool(health.machine.throttled)
        if throttled and not self._throttled:
            warm = "" if health.temperature_c is None else f" at {health.temperature_c:.0f} degrees Celsius"
            self._make_event("throttled", f"the processor's clock is held down{warm}")
        self._throttled = throttled

    def _make_event(self, kind: str, text: str) -> None:
        now = self._now()
        self._make(EVENT, now, now, events=(DeviceEvent(at=show_instant(now), kind=kind, text=text[:LONGEST_TEXT]),))

    def _make(self, stream: str, start: datetime, end: datetime, **content: Any) -> None:
        self._seq += 1
        ended = show_instant(end)
        record = TelemetryRecord(seq=self._seq, start=show_instant(start), end=ended, stream=stream, **content)
        self._held.add(Queued(self._boot, self._seq, record.to_bytes(), stream, ended))

    def _store(self) -> None:
        held = self._held
        try:
            now = self._now() if self._sure() else None
            self._state.queue(held.records, self._limit, lost=held.lost, now=now)
        except Unavailable:
            self._refused_since = self._refused_since or self._now()
            raise
        held.clear()
        if self._refused_since is not None:
            since, self._refused_since = self._refused_since, None
            self.event("disk", f"nothing could be kept from {show_instant(since)} on; what was held in memory is kept")


def _in_batches(stats: Iterable[InferenceStats]) -> list[tuple[InferenceStats, ...]]:
    """Groups of a size that one batch carries: a larger record could never be delivered."""
    groups: list[list[InferenceStats]] = []
    room = 0
    for one in stats:
        room -= len(one.to_bytes())
        if room < 0:
            groups.append([])
            room = BATCH_BYTES - len(one.to_bytes())
        groups[-1].append(one)
    return [tuple(group) for group in groups]


@dataclass(frozen=True)
class _Sent:
    nonce: str
    boot: str
    seqs: tuple[int, ...]


class Outbox:
    """Sends what waits, one batch at a time."""

    def __init__(
        self,
        state: StateFile,
        voice: Voice,
        acks: Acks,
        *,
        timeout: float,
        on_silence: Callable[[], None] = lambda: None,
    ) -> None:
        """`timeout`: seconds until a batch is sent again; `on_silence` hears of each time."""
        self._state = state
        self._voice = voice
        self._acks = acks
        self._on_silence = on_silence
        self._timeout = self._pause = timeout
        self._count = 0
        self._sent: _Sent | None = None
        self._resend: asyncio.TimerHandle | None = None
        self.open = False
        """Whether the fleet is there to take bulk data."""

    def kick(self) -> None:
        """Send the oldest batch if none is under way and the fleet is there."""
        if self._sent is not None or not self.open or not self._voice.up:
            return
        try:
            self._send()
        except Unavailable as e:
            log.error("no telemetry is sent now: %s", e)  # noqa: TRY400  a full disk, not a bug

    def again(self) -> None:
        """A new connection, or the fleet is back: what was under way may be lost, and is sent again at once."""
        self._pause = self._timeout
        self.forget()
        self.kick()

    def _unanswered(self) -> None:
        self._on_silence()
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self.forget()
        self.kick()

    def forget(self) -> None:
        """The line is down, or the agent stops."""
        if self._resend is not None:
            self._resend.cancel()
        self._sent = self._resend = None

    def _send(self) -> None:
        queued, records = self._waiting()
        if not records:
            return
        starts = self._voice.starts()
        self._count += 1
        batch = TelemetryBatch(
            device=self._voice.device,
            boot=queued[0].boot,
            starts=starts,
            sent=self._count,
            nonce=self._acks.ask(),
            records=records,
            memory=self._state.memory(),
            ledger=self._state.ledger(),
        )
        self._sent = _Sent(batch.nonce, batch.boot, tuple(record.seq for record in records))
        self._resend = asyncio.get_running_loop().call_later(self._pause, self._unanswered)
        self._voice.say(topics.Telemetry(self._voice.device), batch)

    def _waiting(self) -> tuple[Sequence[Queued], tuple[TelemetryRecord, ...]]:
        """What is sent next. One that the disk changed is given up: everything behind it would wait for ever."""
        while True:
            queued = self._state.next_batch()
            records = []
            for one in queued:
                try:
                    records.append(TelemetryRecord.from_bytes(one.record))
                except WireError as e:
                    log.warning("record %s of boot %s is given up: %s", one.seq, one.boot, e)
                    self._state.lose(one.boot, one.seq)
            if len(records) == len(queued):
                return queued, tuple(records)

    def answered(self, ack: Ack) -> None:
        """Forget what the fleet says it stored, if it answers the batch under way. Raises `Unavailable`."""
        if self._sent is None or (ack.nonce, ack.boot) != (self._sent.nonce, self._sent.boot):
            return  # of an earlier sending; the one under way gets its own
        stored = [seq for seq in self._sent.seqs if seq <= ack.stored]
        self._state.acknowledged(ack.boot, stored)
        progress = len(stored) == len(self._sent.seqs)
        self._pause = self._timeout
        self.forget()
        if progress:
            self.kick()
