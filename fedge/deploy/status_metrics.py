"""``/metrics``: the status in the text format of Prometheus, version 0.0.4.

No series per client: there may be tens of thousands, and their names come from elsewhere. What each name
means and its unit stand in its HELP line and in ``docs/operations.md``. Counters hold across restarts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedge import __version__
from fedge.deploy.status_file import Number, Snapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[Mapping[str, str], Number]


@dataclass(frozen=True)
class Metric:
    """One name: its type, its meaning with the unit, its samples."""

    name: str
    kind: str
    help: str
    samples: tuple[Sample, ...]


def metrics_text(now: Snapshot | None, at_work: bool) -> str:
    """All of them; without a status (nothing was prepared yet) only what is known without one."""
    found = [
        _one("fedge_build_info", "gauge", "The version of fedge, as a label.", 1, version=__version__),
        _one("fedge_run_at_work", "gauge", "1 while a process does the rounds, 0 otherwise.", int(at_work)),
        _one("fedge_status_readable", "gauge", "1 if status.json can be read.", int(now is not None)),
    ]
    if now is not None:
        found += [*_rounds(now), *_last_round(now), *_clients(now), *_sums(now)]
    return "".join(_lines(metric) for metric in found if metric.samples)


def _rounds(now: Snapshot) -> list[Metric]:
    total = now.totals
    return [
        _one(
            "fedge_status_timestamp_seconds", "gauge", "Unix time when status.json was written.", now.written
        ),
        _one("fedge_rounds_total", "counter", "Rounds completed.", now.rounds),
        _one("fedge_rounds_planned", "gauge", "Rounds that the settings ask for.", now.about.planned),
        _one("fedge_rounds_given_up_total", "counter", "Attempts with too few updates.", total.given_up),
    ]


def _last_round(now: Snapshot) -> list[Metric]:
    if not now.log:
        return []
    last, metric = now.log[-1], now.about.metric
    score = next((r.score for r in reversed(now.log) if r.score is not None), None)
    return [
        _one("fedge_last_round_duration_seconds", "gauge", "Duration of the last round.", last.seconds),
        _one("fedge_last_round_end_timestamp_seconds", "gauge", "Unix time of its end.", last.ended),
        _one("fedge_last_round_asked_clients", "gauge", "Clients that got a task in it.", last.asked),
        _one("fedge_last_round_counted_clients", "gauge", "Clients whose update counts.", last.counted),
        _one("fedge_last_round_loss", "gauge", "Mean training loss in it.", last.loss),
        _one("fedge_score", "gauge", "Mean score, as clients say; higher is better.", score, metric=metric),
    ]


def _clients(now: Snapshot) -> list[Metric]:
    barred = sum(row.barred > now.rounds for row in now.clients.values())
    return [
        _one("fedge_clients_present", "gauge", "Clients that were there at the last look.", len(now.present)),
        _one("fedge_clients_enrolled", "gauge", "Clients that may take part.", now.enrolled),
        _one("fedge_clients_barred", "gauge", "Clients barred for repeated offence.", barred),
    ]


def _sums(now: Snapshot) -> list[Metric]:
    total = now.totals
    payload = [({"direction": "up"}, total.up), ({"direction": "down"}, total.down)]
    verdicts = [({"verdict": "taken"}, total.taken), ({"verdict": "refused"}, total.not_taken)]
    lessons = [({"verdict": "accepted"}, total.accepted), ({"verdict": "refused"}, total.rejected)]
    refused = [({"kind": kind}, n) for kind, n in sorted(now.refused.items())]
    return [
        _one("fedge_updates_counted_total", "counter", "Updates in the global weights.", total.counted),
        _many("fedge_answers_refused_total", "Answers refused, or that did not come, by kind.", refused),
        _many("fedge_payload_bytes_total", "Encoded payloads of training, without framing and TLS.", payload),
        _one("fedge_releases_total", "counter", "Releases published.", total.releases),
        _many("fedge_release_verdicts_total", "Clients' verdicts on releases.", verdicts),
        _many("fedge_redistillations_total", "Verdicts on re-distilled students.", lessons),
    ]


def _one(name: str, kind: str, text: str, value: Number | None, **labels: str) -> Metric:
    return Metric(name, kind, text, () if value is None else ((labels, value),))


def _many(name: str, text: str, samples: Iterable[Sample]) -> Metric:
    return Metric(name, "counter", text, tuple(samples))


def _lines(metric: Metric) -> str:
    head = f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n"
    return head + "".join(f"{metric.name}{_labels(given)} {value!r}\n" for given, value in metric.samples)


def _labels(given: Mapping[str, str]) -> str:
    if not given:
        return ""
    return "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in given.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
