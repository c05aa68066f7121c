"""What ``fedge bench learning`` says to a person."""

from collections.abc import Callable, Mapping
from typing import Any

from fedge.bench._summary import size

Row = Mapping[str, Any]


def lines(result: Row) -> list[str]:
    """Everything that was measured, readable."""
    shown = [_head(result)]
    for key, say in _PARTS.items():
        if result.get(key):
            shown += say(result)
    return shown


def _head(result: Row) -> str:
    folds = f" x {result['folds']} folds" if result["folds"] > 1 else ""
    return (
        f"{result['data']}, task {result['task']}, {result['metric']}, split {result['split']}, "
        f"{result['rounds']} rounds, {result['seeds']} seed(s){folds}. In brackets: the standard deviation "
        "over runs; of a difference, its standard error"
    )


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}" if abs(value) < 1.5 else f"{value:{sign}.2f}"


def _with_spread(row: Row, name: str) -> str:
    spread = row.get(f"{name}_std")
    return _number(row[name]) + (f" ({_number(spread)})" if spread is not None else "")


def _difference(row: Row, name: str) -> str:
    error = row.get(f"{name}_se")
    return _number(row[name], "+") + (f" ({_number(error)})" if error is not None else "")


def _both(row: Row, suffix: str = "") -> str:
    return f"unseen {_with_spread(row, f'unseen{suffix}')}, clients {_with_spread(row, f'clients{suffix}')}"


def _gap(row: Row, name: str) -> str:
    return f"unseen {_difference(row, f'{name}_unseen')}, clients {_difference(row, f'{name}_clients')}"


def _modes(result: Row) -> list[str]:
    shown = []
    for mode, row in result["modes"].items():
        gain = f"; against none: {_gap(row, 'gain')}" if mode != "none" and "gain_unseen" in row else ""
        tried = f"; accepted {row['accepted']:g} of {row['tried']:g}" if mode != "none" else ""
        traffic = f"up {size(row['uplink'])}, down {size(row['downlink'])}"
        shown.append(f"{mode:<8}  {_both(row)}{gain}; {traffic}{tried}")
    return shown


def _missing(result: Row) -> list[str]:
    return [
        f"classes that the server lacks, {mode:<8}  {_both(row)}"
        + (f"; against none: {_gap(row, 'gain')}" if mode != "none" and "gain_unseen" in row else "")
        for mode, row in result["missing_classes"].items()
    ]


def _ceiling(result: Row) -> list[str]:
    return [
        f"trained centrally: {_both(result['ceiling'])}; above mode {result['mode']}: {_gap(result, 'gap')}",
    ]


def _student(result: Row) -> list[str]:
    row = result["student"]
    return [
        f"before any round, distilled: {_both(row['distilled'])}",
        f"before any round, from scratch on the server's labels: {_both(row['scratch'])}; distilled against "
        f"scratch: {_gap(row, 'gain')}",
    ]


def _int8(result: Row) -> list[str]:
    row = result["int8"]
    return [
        f"float above int8 in ONNX Runtime: {_gap(row, 'gap')}; agrees with the fake-quantized forward on "
        f"{row['agreement']:.2%} of the windows (least {row['agreement_least']:.2%})"
    ]


def _pruning(result: Row) -> list[str]:
    row = result["pruning"]
    return [
        f"all channels: {_both(row, '_full')}; cut to {row['multiply_adds_kept']:.0%} of the multiply-adds: "
        f"{_both(row, '_half')}; loss: {_gap(row, 'loss')}; int8 at batch 32 is "
        f"{_with_spread(row, 'speedup_batch32')} times as fast"
    ]


def _anomaly(result: Row) -> list[str]:
    row = result["anomaly"]
    return [
        f"all unseen windows together: AUROC {_with_spread(row, 'auroc_pooled')}, AUPRC "
        f"{_with_spread(row, 'auprc_pooled')}",
        f"per client: AUROC {_both(row['auroc'])}; F1 at the client's own threshold {_both(row['f1_own'])}",
    ]


def _rmse(result: Row) -> list[str]:
    row = result["rmse"]
    official = f"; published test set: {_with_spread(row, 'official')}" if row["official"] is not None else ""
    return [f"RMSE: {_both(row)}{official}"]


_PARTS: Mapping[str, Callable[[Row], list[str]]] = {
    "modes": _modes,
    "missing_classes": _missing,
    "ceiling": _ceiling,
    "student": _student,
    "int8": _int8,
    "pruning": _pruning,
    "anomaly": _anomaly,
    "rmse": _rmse,
}
