"""The lists of a report: rounds, clients, releases, and what travelled."""

from collections.abc import Mapping

from fedge.simulation.finished import Record, Run
from fedge.simulation.scoring import mean
from fedge.simulation.world import World


def traffic_of(run: Run) -> dict[str, tuple[int, int, int]]:
    """For each participant: bytes of the initial download, up, and down after it."""
    totals = {c: [0, 0, 0] for c in run.world.roles.participants}
    for record in map(members_of, run.rounds):
        for key, slot in (("initial_down", 0), ("initial_up", 1), ("up", 1), ("down", 2)):
            for client, amount in record[key].items():
                totals[client][slot] += amount
    return {c: (i, u, d) for c, (i, u, d) in totals.items()}


def members_of(record: Record) -> Record:
    """A round as its participants saw it, where edge servers stand between them and the server."""
    below: Record = record.get("members", {})
    return record | below


def tiers(run: Run) -> Record:
    """``tiers``: what went over the server's own links beside those of the clients; nothing without edges.

    Bytes are sums over the whole run. Releases are not among them.
    """
    if not (edges := run.world.config.fleet.edges):
        return {}
    server, clients = (sum(map(_all_bytes, rs)) for rs in (run.rounds, map(members_of, run.rounds)))
    whole = {
        "edges": edges,
        "clients_per_edge": len(run.world.roles.participants) / edges,
        "server_bytes": server,
        "clients_bytes": clients,
        "ratio": clients / server if server else None,
    }
    return {"tiers": whole}


def byte_means(traffic: Mapping[str, tuple[int, int, int]]) -> Record:
    """Means over the participants."""
    count = len(traffic)
    initial, up, down = (sum(t[i] for t in traffic.values()) / count for i in range(3))
    return {"initial_download": initial, "uplink": up, "downlink": down}


def dataset(world: World) -> Record:
    """What was learned from, and who is whose."""
    return {
        "name": world.dataset.name,
        "clients": len(world.dataset.clients),
        "classes": list(world.dataset.classes),
        "channels": list(world.dataset.channels),
        "window": list(world.dataset.window),
        "server": list(world.roles.server),
        "unseen": list(world.roles.unseen),
    }


def plain_fp32(run: Run) -> Record:
    """What federated averaging of the same student in fp32 would send, mean per client, to whoever took part.

    The weights go down to, and come up from, each participant of each round; nothing else is counted.
    """
    each_way = 4 * run.prepared.plan.spec.parameters()
    visits = sum(r["participants"] for r in map(members_of, run.rounds)) / len(run.world.roles.participants)
    return {"per_round_each_way": each_way, "total": 2 * each_way * visits}


def round_rows(run: Run) -> list[Record]:
    """One row for each round; with a fleet also its virtual seconds, and joules (mean per participant)."""
    clients = len(run.world.roles.participants)
    seen = map(members_of, run.rounds)
    rows = [_round_row(r) | {"bytes_per_client": _all_bytes(r) / clients} for r in seen]
    seconds, joules = 3600 * run.world.config.fleet.start_hour, 0.0
    for row, record in zip(rows, run.rounds, strict=True):
        if (now := record.get("virtual")) is not None:
            row |= {"virtual_seconds": now["seconds"] - seconds, "joules": (now["joules"] - joules) / clients}
            seconds, joules = now["seconds"], now["joules"]
    return rows


def _all_bytes(record: Record) -> int:
    return sum(sum(record[key].values()) for key in ("initial_down", "initial_up", "up", "down"))


def virtual(run: Run) -> Record:
    """``virtual``: what the whole run would have taken on its fleet; nothing for a run without one."""
    last = run.rounds[-1].get("virtual")
    if last is None:
        return {}
    clients, fleet = len(run.world.roles.participants), run.world.config.fleet
    whole = {
        "fleet": fleet.devices,
        "seconds": last["seconds"] - 3600 * fleet.start_hour,
        "work_seconds": last["work_seconds"] / clients,
        "joules_mean": last["joules"] / clients,
        "joules_worst": last.get("worst_joules"),
    }
    return {"virtual": whole}


def _round_row(record: Record) -> Record:
    tried = record["redistillation"]
    return {
        "round": record["round"],
        "seconds": record["seconds"],
        "uplink": mean(list(record["up"].values())),
        "downlink": mean(list(record["down"].values())),
        "score_unseen": record["scores"]["unseen"],
        "score_clients": record["scores"]["clients"],
        "redistilled": bool(tried and tried["accepted"]),
        "released_version": record["release"]["version"] if record["release"] else None,
        "participants": record["participants"],
        "counted": len(record["counted"]),
        "loss": record["loss"],
    }


def client_rows(
    run: Run,
    before: Mapping[str, float],
    after: Mapping[str, float],
    int8: Mapping[str, float],
    traffic: Mapping[str, tuple[int, int, int]],
) -> list[Record]:
    """One row for each participant and each unseen client."""
    rows = []
    roles = [(c, "participant") for c in run.world.roles.participants]
    for client, role in roles + [(c, "unseen") for c in run.world.roles.unseen]:
        part = run.world.parts.get(run.world.person(client))
        initial, up, down = traffic.get(client, (0, 0, 0))
        rows.append(
            {
                "id": client,
                "role": role,
                "windows_train": len(part.train) if part else 0,
                "windows_later": len(part.later) if part else len(run.world.dataset.clients[client]),
                "score_initial": before.get(client),
                "score_final": after.get(client),
                "score_int8": int8.get(client),
                "initial_download": initial,
                "uplink": up,
                "downlink": down,
            }
        )
    return rows


def without(run: Run, after: Record) -> Record | None:
    """The same rounds without re-distillation; ``None`` where none was tried."""
    if not any(r["redistillation"] for r in run.rounds):
        return None
    rounds = run.rounds if run.without is None else run.without
    last = after if run.without is None else rounds[-1]["scores"]
    return {
        "same_as_this_run": run.without is None,
        "score": {"unseen": last["unseen"], "clients": last["clients"]},
        "rounds_log": [
            {
                "round": r["round"],
                "score_unseen": r["scores"]["unseen"],
                "score_clients": r["scores"]["clients"],
            }
            for r in rounds
        ],
    }


def releases_of(run: Run) -> list[Record]:
    """Each release with its round; bytes and decisions are those of the participants."""
    made = [r for r in run.rounds if r["release"]]
    return [r["release"] | r.get("members", {}).get("passed_on", {}) | {"round": r["round"]} for r in made]


def release_row(release: Record, run: Run) -> Record:
    """A release with the scores of its round."""
    scores = run.rounds[release["round"] - 1]["scores"]
    return {
        "version": release["version"],
        "round": release["round"],
        "path": release["path"],
        "sha256": release["sha256"],
        "bytes": release["bytes"],
        "unseen": scores["unseen"],
        "clients": scores["clients"],
        "decisions": release["decisions"],
    }
