"""Tables and the tracked summary of the benchmark of the swap. Pure.

Ratios are taken inside a round and their median is given; times are medians over rounds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from bench.report import facts_line, markdown, number
from bench.swap.endurance import Endured
from bench.swap.figures import Latency, middle, ratio
from bench.swap.servers import Stock
from bench.swap.switches import STREAMS, Kind, Switch

MARKS = ("<!-- bench swap: begin -->", "<!-- bench swap: end -->")

Field = Callable[[Switch], float | None]


def tables(facts: Mapping[str, str], switches: Sequence[Switch], endured: Sequence[Endured]) -> str:
    """Return everything as Markdown."""
    return "\n\n".join(
        [
            facts_line(facts),
            _firsts(switches),
            _steps(switches),
            _waits(switches),
            _endured(endured),
        ]
    )


def summary(
    facts: Mapping[str, str], switches: Sequence[Switch], endured: Sequence[Endured]
) -> dict[str, object]:
    """Return what is kept of a run: every switch, and the endurance."""
    return {
        "facts": dict(facts),
        "switches": [asdict(switch) for switch in switches],
        "endurance": [asdict(one) for one in endured],
    }


def _firsts(switches: Sequence[Switch]) -> str:
    """From asking for the switch to the first token of the new version."""
    head = ["ms to the new version's first token", "streams", "switch", "without a switch"]
    head += ["asking, of it", "stock / this, by round", "failed", "requests"]
    body = []
    for server, kind, streams, group in _groups(switches):
        ratios = [_ratio(switches, one, lambda s: s.first_ms) for one in group]
        body.append(
            [
                _title(server, kind),
                str(streams),
                _cell(middle(one.first_ms for one in group)),
                _cell(middle(one.plain_ms for one in group)),
                _cell(middle(one.asked_ms for one in group)),
                _spread(ratios),
                str(sum(one.failed for one in group)),
                str(sum(one.asked for one in group)),
            ]
        )
    return markdown(head, body)


def _steps(switches: Sequence[Switch]) -> str:
    """What the time goes to, by strop's own account."""
    steps = ["verifying", "converting", "loading", "probing", "switching"]
    body = [
        [_title(server, kind), str(streams)]
        + [_cell(middle(one.timings_ms.get(step) for one in group)) for step in steps]
        for server, kind, streams, group in _groups(switches)
        if any(one.timings_ms for one in group)
    ]
    return markdown(["ms by step", "streams", *steps], body)


def _waits(switches: Sequence[Switch]) -> str:
    """What running streams, and those who came in that second, saw of it."""
    fields: list[tuple[str, Callable[[Latency], float | None]]] = [
        ("gap p50", lambda seen: seen.gap_p50),
        ("gap p99", lambda seen: seen.gap_p99),
        ("longest gap", lambda seen: seen.gap_most),
        ("longest wait for a first token", lambda seen: seen.first_most),
        ("waiting for one at once", lambda seen: seen.num_waiting),
    ]
    body = []
    for server, kind, streams, group in _groups(switches):
        cells = []
        for _, field in fields:
            during = middle(field(one.during) for one in group if one.during)
            without = middle(field(one.without) for one in group if one.without)
            cells.append(f"{_cell(during) or '–'} / {_cell(without) or '–'}")
        waits = [
            ratio(one.during.longest, one.without.longest)
            for one in group
            if one.during and one.without
        ]
        if streams:
            body.append([_title(server, kind), str(streams), *cells, _spread(waits)])
    head = ["ms in that second / without", "streams", *(title for title, _ in fields)]
    return markdown([*head, "longest of all, ratio by round"], body)


def _endured(endured: Sequence[Endured]) -> str:
    """Many switches under many streams."""
    head = ["endurance", *(one.server for one in endured)]
    rows: list[tuple[str, Callable[[Endured], str]]] = [
        ("seconds", lambda one: number(one.seconds)),
        ("switches", lambda one: str(one.switches)),
        ("streams", lambda one: str(one.streams)),
        ("of these, running while another version became active", lambda one: str(one.crossed)),
        ("failed", lambda one: str(one.failed)),
        ("not recorded, or as another version than was said", lambda one: str(one.unrecorded)),
        ("ms for which requests were held", lambda one: _cell(one.held_ms)),
        ("scored again by torch and peft", lambda one: str(one.rescored)),
        ("of these, with a token of another version", lambda one: str(one.mixed)),
        ("MB at most in the second quarter", lambda one: number(one.early_mb)),
        ("MB at most in the last quarter", lambda one: number(one.late_mb)),
    ]
    return markdown(head, [[title, *map(field, endured)] for title, field in rows])


def _groups(
    switches: Sequence[Switch],
) -> list[tuple[str, Kind, int, list[Switch]]]:
    """Return the switches by server, kind and number of streams."""
    keys = dict.fromkeys((one.server, one.kind) for one in switches)
    found = []
    for server, kind in keys:
        for streams in STREAMS:
            group = [
                one
                for one in switches
                if (one.server, one.kind, one.streams) == (server, kind, streams)
            ]
            if group:
                found.append((server, kind, streams, group))
    return found


def _ratio(switches: Sequence[Switch], own: Switch, field: Field) -> float | None:
    """Return the stock server's figure over `own`, of the same round."""
    for one in switches:
        is_same = (one.round, one.streams) == (own.round, own.streams)
        if is_same and one.server == Stock.name and own.server == "strop":
            return ratio(field(one), field(own))
    return None


def _title(server: str, kind: str) -> str:
    if server == Stock.name:
        return server
    return (
        f"{server}: {'to a version to load and prove' if kind == 'new' else 'to one that is held'}"
    )


def _spread(ratios: Sequence[float | None]) -> str:
    known = [value for value in ratios if value is not None]
    most = middle(known)
    if most is None:
        return ""
    return f"{number(most)} ({number(min(known))} to {number(max(known))})"


def _cell(value: float | None) -> str:
    return "" if value is None else number(value) if value else "0"
