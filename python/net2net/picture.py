"""picture: the groups of a model drawn as a picture, in SVG. What goes where is worked out by `picture_layout`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from net2net.groups import Group
from net2net.picture_layout import (
    HEAD,
    LANE,
    LINE,
    SMALL,
    Card,
    Side,
    card_width,
    cards,
    count,
    distinct,
    flow,
    units,
    wires,
)

MARGIN, LEAST_WIDTH = 28, 700

ARROW = "\N{RIGHTWARDS ARROW}"

KINDS = {"grows": "can be widened", "pinned": "left alone, with the reason", "output": "the network's outputs"}

NOTES = [
    "Right: a layer reads the groups that it has a dot on, and makes units of the one that it points at.",
    "Left: where a layer's units join a group further up (an addition, say), its line leads there.",
    "Point at a card, a line or a dot to see all of its names.",
]

# Okabe and Ito's green, vermilion and blue, told apart with every kind of colour vision; lighter on a dark page.
STYLE = """
.page { fill: #ffffff } text { fill: #1f2328; font: 12px system-ui, "Segoe UI", "DejaVu Sans", sans-serif }
.heading { font-size: 18px; font-weight: 600 } .quiet { fill: #59636e } .units { font-size: 11px }
.name, .small { font-family: ui-monospace, Menlo, "DejaVu Sans Mono", monospace } .name { font-weight: 600 }
.small { font-size: 10px } .reason { font-size: 11px; font-style: italic }
.line { fill: none; stroke-width: 1.5; stroke-linecap: round } g:hover > .line { stroke-width: 3.5 }
.wire .line { stroke: #8c959f } .wire .head { fill: #8c959f }
.box { stroke-width: 1.2 } .pinned .box { stroke-dasharray: 5 3 } .output .box { stroke-width: 2.4 }
.grows .line, .grows .box { stroke: #009e73 } .grows .dot, .grows .head { fill: #009e73 } .grows .box { fill: #e9f6f1 }
.pinned .line, .pinned .box { stroke: #d55e00 } .pinned .dot, .pinned .head { fill: #d55e00 }
.output .line, .output .box { stroke: #0072b2 } .output .dot, .output .head { fill: #0072b2 }
.pinned .box { fill: #fcefe5 } .output .box { fill: #e6f1f8 }
@media (prefers-color-scheme: dark) {
.page { fill: #0d1117 } text { fill: #e6edf3 } .quiet { fill: #9198a1 }
.wire .line { stroke: #6e7681 } .wire .head { fill: #6e7681 }
.grows .line, .grows .box { stroke: #2dbd93 } .grows .dot, .grows .head { fill: #2dbd93 } .grows .box { fill: #0d2b23 }
.pinned .line, .pinned .box { stroke: #f0883e } .pinned .dot, .pinned .head { fill: #f0883e }
.output .line, .output .box { stroke: #56b4e9 } .output .dot, .output .head { fill: #56b4e9 }
.pinned .box { fill: #33200f } .output .box { fill: #0f2638 }
}
"""


def picture(groups: Sequence[Group], title: str = "") -> str:
    """The groups as a picture: what can be widened, what cannot and why, and which layers lead from one to another.

        Path("groups.svg").write_text(net2net.picture(net2net.groups(model, images), "ResNet-18"))

    Args:
        groups: what `net2net.groups` returned.
        title: whose groups they are; stands above the picture, before their number.

    Returns:
        An SVG document: complete in itself, without scripts, in ASCII, the same for the same groups. It is light or
        dark as the reader's system is. What is too long for its place is shown in full where one points at it.

    Raises:
        TypeError: if `groups` is anything else.
    """
    if not isinstance(groups, Sequence) or not all(isinstance(g, Group) for g in groups):
        raise TypeError(f"groups (a {type(groups).__name__}) must be what net2net.groups(model, inputs) returns")
    coming, leaving = wires(flow(groups))
    right, left = Side(1, coming), Side(-1, leaving)
    notes = NOTES if leaving else [note for note in NOTES if not note.startswith("Left")]
    top, across = MARGIN + LINE * (len(notes) + 5), card_width(groups)
    stack = cards(groups, top, across, [left, right])
    for side in (left, right):
        side.place([card.top for card in stack])
    x = MARGIN + left.room
    width = max(x + across + right.room + MARGIN, LEAST_WIDTH)
    height = max([card.top + card.height for card in stack], default=top) + MARGIN

    root = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width} {height}"})
    root.attrib.update(width=str(width), height=str(height))
    heading = (f"{title}: " if title else "") + count(len(groups), "group")
    _add(root, "title", text=heading)
    _add(root, "style", text=STYLE)
    _add(root, "rect", "page", width=width, height=height)
    _draw_heading(root, heading, notes, stack)
    _draw_lines(root, left, x, stack)
    _draw_lines(root, right, x + across, stack)
    for card in stack:
        _draw_card(root, card, x, across)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="us-ascii").decode("ascii") + "\n"


def _draw_heading(root: Element, heading: str, notes: Sequence[str], stack: Sequence[Card]) -> None:
    """The title, and what the colours and lines mean."""
    x, y = MARGIN, MARGIN + LINE * 3
    _add(root, "text", "heading", heading, x=x, y=MARGIN + LINE)
    for kind, meaning in KINDS.items():
        legend = f"{meaning} ({sum(card.kind == kind for card in stack)})"
        sample = _add(root, "g", f"sample {kind}")
        _add(sample, "rect", "box", x=x, y=y - 10, width=20, height=12, rx=3)
        _add(root, "text", "quiet", legend, x=x + 27, y=y)
        x += 27 + round(len(legend) * SMALL) + 20
    for n, note in enumerate(notes):
        _add(root, "text", "quiet", note, x=MARGIN, y=y + LINE * (n + 1) + 8)


def _draw_lines(root: Element, side: Side, edge: int, stack: Sequence[Card]) -> None:
    """`edge`: where the cards end on this side."""
    d = side.direction
    names = [card.group.name for card in stack]

    def lane_x(group: int) -> int:
        return edge + d * (side.labels + LANE * (side.column[group] + 1))

    def head(parent: Element, y: int) -> None:
        """An arrow's, at a card."""
        _add(parent, "path", "head", d=f"M{edge} {y}l{d * HEAD} -4v8z")

    for wire in side.wires:
        g = _add(root, "g", "wire")
        lanes = ", ".join(names[a] for a in wire.lanes)
        made, read = (names[wire.card], lanes) if d > 0 else (lanes, names[wire.card])
        _add(g, "title", text=f"{', '.join(wire.layers)}\nreads {read}\nmakes units of {made}")
        near = edge + d * (HEAD + 4 + round(len(wire.label) * SMALL) + 3)
        far = max((lane_x(a) for a in wire.lanes), key=lambda x: d * x)
        _add(g, "path", "line", d=f"M{near} {wire.y}H{far}")
        if d > 0:
            head(g, wire.y)
        else:
            _add(g, "path", "line", d=f"M{edge} {wire.y}h{-HEAD}")
        anchor = "start" if d > 0 else "end"
        _add(g, "text", "small", wire.label, x=edge + d * (HEAD + 4), y=wire.y + 4, text_anchor=anchor)
    for group, start in side.starts.items():
        g = _add(root, "g", f"lane {stack[group].kind}")
        mine = [w for w in side.wires if group in w.lanes]
        layers = ", ".join(layer for w in mine for layer in w.layers)
        _add(g, "title", text=f"{names[group]}\n{'read by' if d > 0 else 'joined by'} {layers}")
        high, low = side.ends[group]
        _add(g, "path", "line", d=f"M{edge} {start}H{lane_x(group)}M{lane_x(group)} {high}V{low}")
        if d < 0:
            head(g, start)
        for wire in mine:
            a, b = (group, wire.card) if d > 0 else (wire.card, group)
            dot = _add(g, "circle", "dot", cx=lane_x(group), cy=wire.y, r=3)
            _add(dot, "title", text=f"{names[a]} {ARROW} {names[b]}: {', '.join(wire.layers)}")


def _draw_card(root: Element, card: Card, x: int, width: int) -> None:
    g = _add(root, "g", f"card {card.kind}")
    _add(g, "title", text=f"{card.group}\nmade by {', '.join(distinct(card.group.layers))}")
    _add(g, "rect", "box", x=x, y=card.top, width=width, height=card.height, rx=6)
    y = card.top + (card.height - LINE * (len(card.lines) + len(card.reason))) // 2 + 12
    _add(g, "text", "units", units(card.group), x=x + width - 12, y=y, text_anchor="end")
    for n, line in enumerate([*card.lines, *card.reason]):
        style = "name" if n == 0 else "small" if n < len(card.lines) else "reason"
        _add(g, "text", style, line, x=x + 12, y=y + LINE * n)


def _add(parent: Element, tag: str, style: str = "", text: str = "", **attributes: int | str) -> Element:
    """A new child of `parent`, with attributes spelled as in Python."""
    given = {name.replace("_", "-"): str(value) for name, value in attributes.items()}
    child = ElementTree.SubElement(parent, tag, {"class": style, **given} if style else given)
    # XML has no way to write control characters and halves of surrogate pairs, which a name may hold.
    child.text = re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\N{REPLACEMENT CHARACTER}", text)
    return child
