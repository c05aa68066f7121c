"""What travelled: bytes per round and in all, beside federated averaging in fp32."""

from fedge.report.charts import Chart, Series, line_chart
from fedge.report.html import Html, el, table
from fedge.report.read import Record, amount, rounds, savings, total_bytes
from fedge.report.svg import figure, logarithmic
from fedge.report.words import cell, count, ratio, round_size, size

_PLAIN = "fp32"


def traffic_section(report: Record) -> Html | None:
    """Two charts on a logarithmic scale: each round, and everything so far."""
    log = rounds(report)
    charts = [chart for chart in (_per_round(report, log), _cumulative(report, log)) if chart]
    if not charts:
        return None
    about = (
        "Mean per client, as encoded. The scale is logarithmic: each rule is ten times the one below it."
        f" {_PLAIN} is federated averaging of the same student, uncompressed. Releases are counted apart."
    )
    return el(
        "section",
        el("h2", "Bytes on the wire"),
        el("p", about),
        _tiers(report),
        el("div", *charts, class_="pair"),
        id="bytes",
    )


def _tiers(report: Record) -> Html | None:
    """What went over the server's own links, where edge servers stand between it and the clients."""
    edges, each = amount(report, "tiers", "edges"), amount(report, "tiers", "clients_per_edge")
    server, clients = (amount(report, "tiers", f"{who}_bytes") for who in ("server", "clients"))
    if not (edges and each and server and clients):
        return None
    who = "1 edge server" if edges == 1 else f"{count(edges)} edge servers"
    said = (
        f"Three tiers: {who} with {each:.3g} clients each. Over the server's own links went {size(server)} "
        f"in all, over those of the clients {size(clients)}: {ratio(clients / server)} as much."
    )
    return el("p", said)


def _per_round(report: Record, log: list[tuple[int, Record]]) -> Html | None:
    lines = []
    for key, name, kind in (("uplink", "up", "one"), ("downlink", "down", "two")):
        sent = [(float(at), y) for at, row in log if (y := amount(row, key))]
        if sent:
            lines.append(Series(name, kind, sent, size(sent[-1][1])))
    if not lines:
        return None
    plain = amount(report, "plain_fp32", "per_round_each_way")
    last = max(x for one in lines for x, _ in one.points)
    if plain:
        lines.append(Series(_PLAIN, "plain", [(0, plain), (last, plain)], size(plain), True))
    words = ", ".join(f"{one.name} {one.shown}" for one in lines)
    axis = logarithmic(y for one in lines for _, y in one.points)
    chart = Chart("sent", "Bytes per round", words, lines, axis, round_size, size)
    body = [[at, *(cell(amount(row, key)) for key in ("uplink", "downlink"))] for at, row in log]
    numbers = table("Mean bytes per client", ["round", "up", "down"], body)
    sums = [amount(report, "bytes", key) for key in ("uplink", "downlink")]
    finding = "Each round"
    if plain and log and all(sums):
        finding = f"Each round: {ratio(2 * plain * len(log) / sum(s for s in sums if s))} less than {_PLAIN}"
    return figure("sent-chart", finding, "bytes per client and round", line_chart(chart), numbers)


def _cumulative(report: Record, log: list[tuple[int, Record]]) -> Html | None:
    start = amount(report, "bytes", "initial_download")
    here, so_far = [(0.0, start or 0.0)] if start else [], start or 0.0
    for at, row in log:
        so_far += (amount(row, "uplink") or 0) + (amount(row, "downlink") or 0)
        if so_far > 0:
            here.append((float(at), so_far))
    if len(here) < 2:
        return None
    lines = [Series("fedge", "one", here, size(here[-1][1]))]
    if there := _plain_so_far(report, log):
        lines.append(Series(_PLAIN, "plain", there, size(there[-1][1]), True))
    words = ", ".join(f"{one.name} {one.shown} in all" for one in lines)
    axis = logarithmic(y for one in lines for _, y in one.points)
    chart = Chart("total", "Bytes so far", words, lines, axis, round_size, size)
    plain = dict(there)
    body = [[f"{at:g}", count(y), cell(plain.get(at))] for at, y in here]
    numbers = table("Bytes per client so far", ["round", "fedge", _PLAIN], body)
    times = savings(report)
    finding = f"So far: {ratio(times)} less than {_PLAIN}" if times else "So far"
    total = total_bytes(report)
    about = "everything so far" if total is None else f"{size(start)} at the start, {size(total)} at the end"
    return figure("total-chart", finding, about, line_chart(chart), numbers)


def _plain_so_far(report: Record, log: list[tuple[int, Record]]) -> list[tuple[float, float]]:
    """The uncompressed run: what its total holds beyond the rounds is its initial download."""
    each, total = amount(report, "plain_fp32", "per_round_each_way"), amount(report, "plain_fp32", "total")
    if not each:
        return []
    start = max((total or 0) - 2 * each * len(log), 0.0)
    points = [(float(at), start + 2 * each * k) for k, (at, _) in enumerate(log, start=1)]
    return [(0.0, start), *points] if start else points
