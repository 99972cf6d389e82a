"""The picture of a model's groups: that it shows all of them and what leads from one to another, and nothing else."""

import functools
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import net2net
import pytest
from models import EXAMPLES
from net2net.cli import main
from net2net.groups import Group
from net2net.picture_layout import NAME, SMALL, Side, Wire, flow
from torch import nn
from zoo import NETWORKS

SVG = "{http://www.w3.org/2000/svg}"
ALL = {**EXAMPLES, **NETWORKS}


@functools.cache
def groups_of(name: str) -> list[Group]:
    model, x = ALL[name].build()
    return net2net.groups(model, x)


def drawn(svg: str, style: str) -> list[Element]:
    """The elements of a class, in order."""
    root = ElementTree.fromstring(svg)
    return [e for e in root.iter() if style in e.get("class", "").split()]


def title(element: Element) -> str:
    return element.findtext(f"{SVG}title", "")


def edges(groups: Sequence[Group]) -> set[tuple[str, str, str]]:
    """As `flow` has them, by name."""
    return {(groups[a].name, groups[b].name, layer) for (a, b), layers in flow(groups).items() for layer in layers}


def edges_drawn(svg: str) -> set[tuple[str, str, str]]:
    """As the dots have them."""
    found = set()
    for dot in drawn(svg, "dot"):
        a, b, layers = re.fullmatch(r"(\S+) \N{RIGHTWARDS ARROW} (\S+): (.+)", title(dot)).groups()
        found.update((a, b, layer) for layer in layers.split(", "))
    return found


@pytest.mark.parametrize("name", ALL)
def test_all_is_drawn(name: str) -> None:
    groups = groups_of(name)
    svg = net2net.picture(groups, name)
    cards = drawn(svg, "card")
    assert len(cards) == len(groups)
    for card, group in zip(cards, groups, strict=True):
        first, made_by = title(card).splitlines()
        assert first == str(group)
        assert made_by == "made by " + ", ".join(dict.fromkeys(group.layers))
        assert card.get("class") == "card " + (
            "grows" if group.reason is None else "output" if group.output else "pinned"
        )
    assert edges_drawn(svg) == edges(groups)
    assert edges(groups)
    assert f"{name}: {len(groups)} groups" in svg


def test_edges_of_a_residual_network() -> None:
    groups = groups_of("residual")
    assert [g.layers for g in groups] == [["stem", "conv2"], ["conv1"], ["conv3", "down"], ["fc1"], ["fc2"]]
    assert flow(groups) == {
        (0, 1): ["conv1"],
        (0, 2): ["conv3", "down"],
        (1, 0): ["conv2"],
        (2, 3): ["fc1"],
        (3, 4): ["fc2"],
    }
    labels = [wire.findtext(f"{SVG}text") for wire in drawn(net2net.picture(groups), "wire")]
    assert sorted(map(str, labels)) == ["conv1", "conv2", "conv3, down", "fc1", "fc2"]


def test_edges_of_concatenations() -> None:
    """A layer reads all that lies side by side, by one wire."""
    groups = groups_of("dense")
    assert [g.name for g in groups] == ["stem", "convs.0", "convs.1", "convs.2", "head"]
    assert sorted(flow(groups)) == [(a, b) for a in range(5) for b in range(a + 1, 5)]
    wires = drawn(net2net.picture(groups), "wire")
    assert [title(w).splitlines()[1] for w in wires] == [
        "reads stem",
        "reads stem, convs.0",
        "reads stem, convs.0, convs.1",
        "reads stem, convs.0, convs.1, convs.2",
    ]


def test_a_group_may_read_itself() -> None:
    """Layer b has its weight in common with the layer that reads it."""
    groups = groups_of("tied")
    assert [g.layers for g in groups] == [["a", "b"], ["d"]]
    assert flow(groups) == {(0, 0): ["b"], (0, 1): ["d"]}
    assert title(drawn(net2net.picture(groups), "wire")[0]) == "b\nreads a\nmakes units of a"


@pytest.mark.parametrize("name", ALL)
def test_nothing_overlaps(name: str) -> None:
    """Cards stand below each other; lanes in one column do not touch; all lies within the page."""
    svg = net2net.picture(groups_of(name))
    root = ElementTree.fromstring(svg)
    width, height = int(root.attrib["width"]), int(root.attrib["height"])
    boxes = [{k: int(v) for k, v in card[1].attrib.items() if k != "class"} for card in drawn(svg, "card")]
    for above, below in itertools.pairwise(boxes):
        assert above["y"] + above["height"] < below["y"]
    lanes: dict[str, list[tuple[int, int]]] = {}
    for lane in drawn(svg, "lane"):
        x, high, low = re.fullmatch(r"M\d+ \d+H\d+M(\d+) (\d+)V(\d+)", lane[1].attrib["d"]).groups()
        lanes.setdefault(x, []).append((int(high), int(low)))
    for column in lanes.values():
        column.sort()
        for above, below in itertools.pairwise(column):
            assert above[1] < below[0]
    assert max(b["x"] + b["width"] for b in boxes) < width
    assert max(map(int, lanes)) < width
    assert min(map(int, lanes)) > 0
    assert max(b["y"] + b["height"] for b in boxes) < height


def test_short_lanes_are_inside() -> None:
    side = Side(1, [Wire(1, ["a"], [0]), Wire(2, ["b"], [0, 1]), Wire(3, ["c"], [0, 2])])
    side.place([0, 100, 200, 300])
    assert side.column == {0: 1, 1: 0, 2: 0}
    assert side.ends[0] == (side.starts[0], side.wires[2].y)


def test_reasons_are_shown() -> None:
    svg = net2net.picture(groups_of("recurrent"))
    (card,) = drawn(svg, "pinned")[1:2]
    shown = " ".join(str(text.text) for text in card if text.get("class") == "reason")
    assert shown.startswith("a recurrent layer is not looked into")
    assert net2net.picture([Group(["a"], 3, "for a reason " * 99)]).count('class="reason"') == 3


def test_long_names_are_shortened() -> None:
    names = [f"block.{'very_' * 20}long.{i}" for i in range(30)]
    svg = net2net.picture([Group(names, 3, axes=[(f"{n}.weight", 0) for n in names], blocks=3)])
    (card,) = drawn(svg, "card")
    texts = [str(e.text) for e in card if e.tag == f"{SVG}text"]
    assert all(NAME * len(t) < int(card[1].attrib["width"]) for t in texts[:2])
    assert SMALL * len(texts[2]) < int(card[1].attrib["width"])
    assert texts[1].endswith("_long.0")
    assert texts[2].endswith("+28")
    assert all(name in title(card) for name in names)
    assert "3 units" in texts


def test_any_name_is_written_as_it_is() -> None:
    odd = "<&>\"'\u00e9]]>--"
    model = nn.Sequential()
    model.add_module(odd, nn.Linear(3, 4))
    model.add_module("\x01\ud800", nn.Linear(4, 2))
    svg = net2net.picture(net2net.groups(model, EXAMPLES["mlp"].build()[1][:, :3].float()), odd)
    assert svg.isascii()
    texts = [e.text for e in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert odd in texts
    assert f"{odd}: 2 groups" in texts
    assert "\ufffd\ufffd" in texts  # neither can be written in XML
    assert not drawn(svg, "script")


def test_it_is_complete_in_itself_and_always_the_same() -> None:
    svg = net2net.picture(groups_of("residual"))
    assert svg == net2net.picture(net2net.groups(*ALL["residual"].build()))
    root = ElementTree.fromstring(svg)
    assert {e.tag.removeprefix(SVG) for e in root.iter()} == {
        "svg", "title", "style", "rect", "g", "path", "text", "circle",
    }  # fmt: skip
    assert not re.search(r"href|url\(|@import|\son\w+=", svg)


def test_no_groups() -> None:
    assert drawn(net2net.picture([]), "heading")[0].text == "0 groups"


def test_what_is_no_list_of_groups() -> None:
    with pytest.raises(TypeError, match=r"groups \(a Linear\) must be what net2net.groups"):
        net2net.picture(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"groups \(a list\)"):
        net2net.picture([nn.Linear(2, 2)])  # type: ignore[list-item]


MODEL = "net2net.models:inception_bn(num_classes=3, width=0.2, stem='small')"
INSPECT = ["inspect", "--model", MODEL, "--input", "1x3x16x16"]


def test_inspect_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "groups.svg"
    path.write_text("old")
    assert main([*INSPECT, "--svg", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {path}"
    assert [p.name for p in tmp_path.iterdir()] == ["groups.svg"]
    assert str(drawn(path.read_text(), "heading")[0].text).startswith("InceptionBN: ")


def test_inspect_refuses_a_bad_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for path, message in (
        (tmp_path, "is a folder, not a file"),
        (tmp_path / "missing" / "groups.svg", "there is no folder"),
        (tmp_path / "file" / "groups.svg", "there is no folder"),
    ):
        assert main([*INSPECT, "--svg", str(path)]) == 1
        out, error = capsys.readouterr()
        assert f"--svg (={str(path)!r})" in error
        assert message in error
        assert not out
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_interrupted_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "groups.svg"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    assert main([*INSPECT, "--svg", str(path)]) == 1
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["groups.svg"]
