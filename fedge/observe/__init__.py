"""What long work tells the person who waits for it, and what it writes into ``metrics.jsonl``.

Code in the library takes an ``Observer`` and reports facts. It never decides how they look::

    with observer.stage("federated rounds") as stage:
        for number in range(1, rounds + 1):
            ...
            observer.event("round", round=number, rounds=rounds, seconds=0.4, uplink=620, downlink=580)
        stage.result = "clients 0.912, unseen 0.834"

Every event becomes one line of ``metrics.jsonl``. The terminal shows the kinds that it knows:

    stage           name, seconds, result; or failed (the error's name). Before it: stage_start, name
    round           round, rounds, seconds, uplink, downlink, score_clients, score_unseen
    redistillation  round, accepted, reason
    release         version, bytes, taken, refused
    refused         client, round, reason
    note, warning   text

and leaves the others to the file. Bytes are means per client, scores are fractions, times are seconds.
"""

from fedge.observe.jsonl import MAX_LINE, JsonlSink, read_events
from fedge.observe.observer import Observer, Stage, Tee, silent
from fedge.observe.terminal import Terminal

__all__ = ["MAX_LINE", "JsonlSink", "Observer", "Stage", "Tee", "Terminal", "read_events", "silent"]
