"""Where the parts of a picture of groups go: cards, and the lines on both sides of them.

Each group is a card, in the order in which the forward meets them. On the right, each group has one *lane*, from its
card to the last layer that reads its units, and each layer one *wire*, from a dot on every lane that it reads to the
card of the group whose units it makes. So layers that each read all earlier ones (DenseNet) make a triangle of dots,
not a curve for every pair. Where the units that a layer makes belong to a group further up (they are added to its
units, or scale them), the wire leaves on the left, where each group that is joined in this way has one lane.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from net2net.groups import Group, layer_of

# In pixels. Names are set in a monospaced font, so that it is known how much room they take.
GAP, LINE, PORT, LANE, HEAD = 10, 16, 13, 11, 7
NAME, SMALL = 7.4, 6.1  # a character's width in the first line of a card, and in all others
# In characters. Longer names lose their beginning, longer reasons their end.
LONGEST_NAME, LONGEST_LABEL = 46, 36

ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def flow(groups: Sequence[Group]) -> dict[tuple[int, int], list[str]]:
    """(a, b) -> the layers that read units of groups[a] and make units of groups[b]."""
    made: dict[str, list[int]] = {}
    for b, group in enumerate(groups):
        for tensor in dict.fromkeys(tensor for tensor, _ in group.axes):
            made.setdefault(tensor, []).append(b)
    edges: dict[tuple[int, int], list[str]] = {}
    for a, group in enumerate(groups):
        for tensor, _ in group.readers:
            for b in made.get(tensor, []):
                edges.setdefault((a, b), []).append(layer_of(tensor))
    return {edge: list(dict.fromkeys(layers)) for edge, layers in edges.items()}


@dataclass
class Wire:
    """Layers that share a line, between the card of a group and a dot on the lane of each of `lanes`."""

    card: int
    layers: list[str]
    lanes: list[int]
    y: int = 0

    @property
    def label(self) -> str:
        return some(self.layers, LONGEST_LABEL)


def wires(edges: Mapping[tuple[int, int], list[str]]) -> tuple[list[Wire], list[Wire]]:
    """Those that come into a card on the right, and those that leave one on the left."""
    leaving = [Wire(a, layers, [b]) for (a, b), layers in edges.items() if a > b]
    read: dict[tuple[int, str], list[int]] = {}
    for (a, b), layers in edges.items():
        for layer in layers if a <= b else []:
            read.setdefault((b, layer), []).append(a)
    # Layers that read the same (queries, keys and values, say) share a wire.
    coming: dict[tuple[int, tuple[int, ...]], Wire] = {}
    for (b, layer), lanes in read.items():
        coming.setdefault((b, tuple(lanes)), Wire(b, [], lanes)).layers.append(layer)
    return list(coming.values()), leaving


class Side:
    """The lines on one side of the cards: `direction` is 1 on the right and -1 on the left.

    `starts[g]`, `column[g]` and `ends[g]` are of the lane of group g: where it meets its card, which of the columns
    beside the cards it is in, and its highest and lowest point.
    """

    def __init__(self, direction: int, wires: list[Wire]) -> None:
        self.direction, self.wires = direction, wires
        # What meets the edge of each card, from top to bottom. None is the group's own lane: on the right it leaves
        # below the wires that come in, on the left it comes in above those that leave.
        self._ports: dict[int, list[Wire | None]] = {}
        for wire in wires:
            self._ports.setdefault(wire.card, []).append(wire)
        for group in sorted({g for wire in wires for g in wire.lanes}):
            ports = self._ports.setdefault(group, [])
            ports.insert(len(ports) if direction > 0 else 0, None)
        self.starts: dict[int, int] = {}
        self.ends: dict[int, tuple[int, int]] = {}
        self.column: dict[int, int] = {}

    def height(self, card: int) -> int:
        """What the lines at a card's edge need."""
        return PORT * (len(self._ports.get(card, [])) + 1)

    def place(self, tops: Sequence[int]) -> None:
        """Fixes all heights, and the lanes' columns; `tops` are the cards'."""
        for card, ports in self._ports.items():
            for n, wire in enumerate(ports):
                y = tops[card] + PORT * (n + 1)
                if wire is None:
                    self.starts[card] = y
                else:
                    wire.y = y
        for group in sorted(self.starts):
            ys = [self.starts[group], *(w.y for w in self.wires if group in w.lanes)]
            self.ends[group] = min(ys), max(ys)
        # The shortest first, and each as far inside as it can: then few lines cross.
        columns: list[list[tuple[int, int]]] = []
        for group, (top, bottom) in sorted(self.ends.items(), key=lambda item: (item[1][1] - item[1][0], item[1])):
            free = (n for n, lanes in enumerate(columns) if all(t > bottom or b < top for t, b in lanes))
            n = self.column[group] = next(free, len(columns))
            if n == len(columns):
                columns.append([])
            columns[n].append((top, bottom))

    @property
    def labels(self) -> int:
        """The width of the names between cards and lanes."""
        return round(max((len(w.label) for w in self.wires), default=0) * SMALL) + HEAD + 8

    @property
    def room(self) -> int:
        return self.labels + LANE * (max(self.column.values()) + 2) if self.column else 0


@dataclass
class Card:
    group: Group
    lines: list[str]  # the first is the group's name
    reason: list[str]
    top: int
    height: int

    @property
    def kind(self) -> str:
        return "grows" if self.group.reason is None else "output" if self.group.output else "pinned"


def cards(groups: Sequence[Group], top: int, width: int, sides: Sequence[Side]) -> list[Card]:
    """One below the other from `top`, each as high as its text and its lines need."""
    room = int((width - 24) / SMALL)
    stack = []
    for i, group in enumerate(groups):
        layers = distinct(group.layers)
        lines = [tail(layers[0], LONGEST_NAME)]
        if len(layers) > 1:
            lines.append(f"with {some(layers[1:], room - 5)}")
        reason = textwrap.wrap(group.reason or group.partly or "", room, max_lines=3, placeholder=f" {ELLIPSIS}")
        height = max(LINE * (len(lines) + len(reason)) + 12, *(side.height(i) for side in sides))
        stack.append(Card(group, lines, reason, top, height))
        top += height + GAP
    return stack


def card_width(groups: Sequence[Group]) -> int:
    """Of all cards: what the longest name and number of units need."""
    names = max((min(len(g.name), LONGEST_NAME) for g in groups), default=0)
    return max(290, round(names * NAME + max((len(units(g)) for g in groups), default=0) * SMALL) + 40)


# -- text ------------------------------------------------------------------------------------------------------------


def count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def units(group: Group) -> str:
    blocks = "" if group.blocks == group.units else f" in {count(group.blocks, 'block')}"
    return count(group.units, "unit") + blocks


def distinct(layers: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(layers))


def tail(text: str, room: int) -> str:
    """`text`, or the end of it: names of modules differ there."""
    return text if len(text) <= room else ELLIPSIS + text[len(text) - room + 1 :]


def some(names: Sequence[str], room: int) -> str:
    """As many of the names as fit into `room` characters, and how many more there are."""
    for n in range(len(names), 0, -1):
        more = f" +{len(names) - n}" if n < len(names) else ""
        text = ", ".join(names[:n]) + more
        if len(text) <= room:
            break
    return tail(text, room)
