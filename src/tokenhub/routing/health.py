"""Health per provider: what its last answers say about sending it the next request.

                  5 errors in a row                      time is up
      closed ──────────────────────────► open ──────────────────────────► half-open
        ▲                                  ▲     30 s x n, at most 300 s      │
        │                                  └───────── trial fails ────────────┤
        └──────────────────────────────────────────── trial answers ──────────┘

Only errors that are the provider's count. A 429 closes the provider for as long as it asks without
saying that it is ill; a refused credential or an empty account closes it like an outage, under
its own name. Probes have their own counters and never enter the traffic's figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tokenhub.core.catalog import EMPTY
from tokenhub.core.decision import ModelView, ProviderView
from tokenhub.core.errors import FailureClass
from tokenhub.routing.circuit import BUCKET_S, DOWN_AT, Circuit, Window

if TYPE_CHECKING:
    from tokenhub.core.catalog import Catalog, Model
    from tokenhub.core.clock import Clock

REJECTED_AT = 2  # one model's 403 must not close a provider whose other models answer
TRIAL_S = 60.0  # after this a trial that never ended is given up
PAUSE_MAX_S = 30.0  # for a 429 that names no time
RETRY_AFTER_MAX_S = 86_400.0

ATTRIBUTABLE = frozenset(
    {
        FailureClass.CONNECT,
        FailureClass.TIMEOUT,
        FailureClass.RESET,
        FailureClass.SERVER,
        FailureClass.OVERLOADED,
        FailureClass.GARBAGE,
        FailureClass.MISDIRECTED,
    }
)
"""The failures that say something about the provider rather than the request or the client."""

REJECTIONS = frozenset({FailureClass.AUTH, FailureClass.QUOTA})

OnChange = Callable[[str, str, str, str], None]
"""Called with provider id, old state, new state, and the reason."""


class Health:
    """All providers. Everything is learned at once, from the loop's thread.

    Attributes:
        news: rises with everything that no decision may overlook: all but plain answers.
        due: monotonic time at which time alone changes something; ``tick`` is to be called then.
    """

    def __init__(self, clock: Clock) -> None:
        self.news = 0
        self._clock = clock
        self._catalog = EMPTY
        self._circuits: dict[str, Circuit] = {}
        self._models: dict[str, Window] = {}
        self._views: dict[str, ProviderView] = {}
        self._model_views: dict[str, ModelView] = {}
        self._changed: set[str] = set()
        self._changed_models: set[str] = set()
        self.due = 0.0
        self._turn = 0
        self._on_change: list[OnChange] = []

    def on_change(self, callback: OnChange) -> None:
        """Have every change of a provider's state reported."""
        self._on_change.append(callback)

    def begin(self, provider_id: str) -> bool:
        """Whether an attempt may start now; takes the trial of a half-open circuit.

        Each True is answered by one ``answered``, ``failed`` or ``cancelled``.
        """
        circuit = self._circuits.get(provider_id)
        if circuit is None or not (circuit.tripped or circuit.limited_until):
            return True
        now = self._clock.monotonic()
        if circuit.closed(now):
            return False
        if circuit.tripped:
            circuit.trial_until = now + TRIAL_S
            self._change(provider_id)
        return True

    def first_token(self, provider_id: str) -> None:
        """The first token of an attempt has come, so a trial has passed."""
        circuit = self._circuits.get(provider_id)
        if circuit is not None and circuit.tripped:
            circuit.restore(self._clock.monotonic())
            self._touch(provider_id, circuit, "answered")

    def answered(
        self,
        provider_id: str,
        model_id: str,
        latency_ms: float,
        ttft_ms: float | None = None,
        now: float | None = None,
    ) -> None:
        """An attempt came to a good end, ``now`` in monotonic seconds where it was just asked."""
        if now is None:
            now = self._clock.monotonic()
        circuit = self._circuits.get(provider_id) or self._circuit(provider_id)
        circuit.requests += 1
        circuit.answered = now
        if (window := self._models.get(model_id)) is None:
            window = self._models[model_id] = Window()
        Window.answered((circuit.window, window), now, latency_ms, ttft_ms)
        self._changed_models.add(model_id)
        if circuit.calm or circuit.well:
            circuit.calm = True
            self._changed.add(provider_id)
        else:
            circuit.restore(now)
            self._touch(provider_id, circuit, "answered")

    def failed(
        self,
        provider_id: str,
        kind: str,
        message: str = "",
        retry_after: float | None = None,
        began: float | None = None,
    ) -> None:
        """An attempt failed.

        Args:
            provider_id: who was asked.
            kind: a ``FailureClass`` value; one that is not the provider's changes nothing.
            message: safe for an admin to read.
            retry_after: seconds the provider asked to be left alone, None if it did not say.
            began: monotonic time at which the attempt began, None = just now.
        """
        now = self._clock.monotonic()
        circuit = self._circuit(provider_id)
        circuit.requests += 1
        # What was under way when the circuit opened is no trial: it ends none and prolongs nothing.
        stale = circuit.tripped != "" and began is not None and began <= circuit.opened
        if kind == FailureClass.RATE_LIMITED:
            self._pause(circuit, now, retry_after)
        elif kind in REJECTIONS:
            self._note(circuit, now, message or kind)
            circuit.rejected += 1
            enough = circuit.rejected >= REJECTED_AT or circuit.tripped
            if not stale and (enough or kind == FailureClass.QUOTA):
                circuit.trip(now, kind)
        elif kind in ATTRIBUTABLE:
            self._note(circuit, now, message or kind)
            circuit.consecutive += 1
            if retry_after is not None:
                self._pause(circuit, now, retry_after)
            if not stale:
                self._consider_trip(circuit, now)
        if not stale:
            circuit.trial_until = 0.0
        self._touch(provider_id, circuit, kind)

    def cancelled(self, provider_id: str) -> None:
        """An attempt ended without saying anything about the provider."""
        if (circuit := self._circuits.get(provider_id)) is not None and circuit.trial_until:
            circuit.trial_until = 0.0
            self._change(provider_id)

    def probed(self, provider_id: str, error: str | None) -> None:
        """A background probe ended; ``error`` None = it was answered.

        A good probe ends what bad probes began; only traffic ends what traffic began, because a
        provider may list its models and still fail to run them.
        """
        now = self._clock.monotonic()
        circuit = self._circuit(provider_id)
        circuit.last_probe_ms = self._clock.now_ms()
        circuit.last_probe_error = error or ""
        if error is None:
            circuit.probe_errors = 0
            if circuit.tripped_by_probe and circuit.tripped:
                circuit.restore(now)
        else:
            circuit.probe_errors += 1
            if circuit.probe_errors >= DOWN_AT and circuit.phase(now) != "open":
                circuit.trip(now, "down", by_probe=True)
        self._touch(provider_id, circuit, "probe")

    def reset(self, provider_id: str) -> None:
        """Forget what closed a provider: its credential or address has changed."""
        if (circuit := self._circuits.get(provider_id)) is not None:
            circuit.restore(self._clock.monotonic())
            circuit.limited_until = 0.0
            self._touch(provider_id, circuit, "changed")

    def follow(self, catalog: Catalog) -> None:
        """Forget everything about providers and models that are not in a catalog."""
        self._catalog = catalog
        self._circuits = {i: self._circuits[i] for i in catalog.providers if i in self._circuits}
        self._models = {i: self._models[i] for i in catalog.models if i in self._models}
        self._changed, self._changed_models = set(self._circuits), set(self._models)
        self._views, self._model_views = {}, {}

    def offers(self, model: Model) -> bool:
        """Whether the catalog still has a model that was chosen earlier, for use."""
        known = self._catalog.models.get(model.id)
        if known is None or not known.enabled or known.provider_id != model.provider_id:
            return False
        provider = self._catalog.providers.get(model.provider_id)
        return provider is not None and provider.enabled

    def available(self, provider_id: str) -> bool:
        """Whether an attempt could start now."""
        circuit = self._circuits.get(provider_id)
        return circuit is None or not circuit.closed(self._clock.monotonic())

    def tick(self) -> None:
        """Report the changes that time alone has made; the prober calls it every second."""
        now = self._clock.monotonic()
        if now >= self.due:
            self._renew(now)

    def views(self) -> tuple[dict[str, ProviderView], dict[str, ModelView]]:
        """Providers and models as a decision reads them; never changed after they are given out."""
        now = self._clock.monotonic()
        if now >= self.due:
            self._renew(now)
        if self._changed:
            fresh = {i: self._view(self._circuits[i], now) for i in self._changed}
            self._views = self._views | fresh
            self._changed = set()
        if self._changed_models:
            models = {i: _model_view(self._models[i], now) for i in self._changed_models}
            self._model_views = self._model_views | models
            self._changed_models = set()
        return self._views, self._model_views

    def _renew(self, now: float) -> None:
        if (turn := int(now / BUCKET_S)) != self._turn:
            self._turn = turn
            self._changed_models.update(self._models)
        for provider_id, circuit in self._circuits.items():
            self._touch(provider_id, circuit, "time")
        changes = [circuit.next_change(now) for circuit in self._circuits.values()]
        self.due = min(changes, default=now + BUCKET_S)

    def _circuit(self, provider_id: str) -> Circuit:
        if (circuit := self._circuits.get(provider_id)) is None:
            circuit = self._circuits[provider_id] = Circuit()
            self.due = 0.0
        return circuit

    def _note(self, circuit: Circuit, now: float, message: str) -> None:
        circuit.errors += 1
        circuit.window.failed(now)
        circuit.last_error = message
        circuit.last_error_ms = self._clock.now_ms()

    @staticmethod
    def _pause(circuit: Circuit, now: float, retry_after: float | None) -> None:
        if retry_after is None:
            retry_after = min(2.0**circuit.pauses, PAUSE_MAX_S)
            circuit.pauses += 1
        until = now + min(max(retry_after, 0.0), RETRY_AFTER_MAX_S)
        circuit.limited_until = max(circuit.limited_until, until)

    @staticmethod
    def _consider_trip(circuit: Circuit, now: float) -> None:
        phase = circuit.phase(now)
        if phase == "half_open" or (phase == "closed" and circuit.consecutive >= DOWN_AT):
            circuit.trip(now, "down")

    def _change(self, provider_id: str) -> None:
        self.news += 1
        self._changed.add(provider_id)

    def _touch(self, provider_id: str, circuit: Circuit, reason: str) -> None:
        now = self._clock.monotonic()
        circuit.calm = False
        self._change(provider_id)
        self.due = min(self.due, circuit.next_change(now))
        new = circuit.judged(now)
        if new != (old := circuit.state):
            circuit.state = new
            for callback in self._on_change:
                callback(provider_id, old, new, reason)

    def _view(self, circuit: Circuit, now: float) -> ProviderView:
        closed = circuit.closed(now)
        error_rate, latency, ttft = circuit.window.rates(now)
        return ProviderView(
            state=circuit.judged(now),
            closed=closed,
            retry_ms=self._wall(self._reopens(circuit), now) if closed else 0,
            error_rate=error_rate,
            usual_ms=circuit.window.usual_ms,
            latency_ms=latency,
            ttft_ms=ttft,
        )

    @staticmethod
    def _reopens(circuit: Circuit) -> float:
        ends = max(circuit.until, circuit.trial_until) if circuit.tripped else 0.0
        return max(ends, circuit.limited_until)

    def _wall(self, moment: float, now: float) -> int:
        return self._clock.now_ms() + int((moment - now) * 1000)

    def rows(self, provider_ids: Iterable[str]) -> list[dict[str, Any]]:
        """One row per provider for the admin, sorted by id; times in RFC 3339, None = never."""
        return [self._row(provider_id) for provider_id in sorted(provider_ids)]

    def _row(self, provider_id: str) -> dict[str, Any]:
        now = self._clock.monotonic()
        circuit = self._circuits.get(provider_id) or Circuit()
        closed = circuit.closed(now)
        error_rate, latency, ttft = circuit.window.rates(now)
        answered = self._wall(circuit.answered, now) if circuit.answered else 0
        return {
            "provider_id": provider_id,
            "state": circuit.judged(now),
            "circuit": circuit.phase(now),
            "closed_by": closed,
            "total_requests": circuit.requests,
            "total_errors": circuit.errors,
            "consec_errors": circuit.consecutive,
            "error_rate": round(error_rate, 4),
            "avg_latency_ms": round(latency or circuit.window.usual_ms, 1),
            "avg_ttft_ms": round(ttft, 1),
            "last_error": circuit.last_error,
            "last_error_time": _instant(circuit.last_error_ms),
            "last_success_at": _instant(answered),
            "cooldown_until": _instant(self._wall(self._reopens(circuit), now) if closed else 0),
            "probe_errors": circuit.probe_errors,
            "last_probe_at": _instant(circuit.last_probe_ms),
            "last_probe_error": circuit.last_probe_error,
        }


def _model_view(window: Window, now: float) -> ModelView:
    _, latency, ttft = window.rates(now)
    return ModelView(usual_ms=window.usual_ms, latency_ms=latency, ttft_ms=ttft)


def _instant(unix_ms: int) -> str | None:
    if not unix_ms:
        return None
    moment = datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")
