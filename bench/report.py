"""Results from a run, as files; and committed results, as README.md's table.

python bench/report.py RUN.json FOLDER                      writes FOLDER/bench.json, bench.md and bench.png
python bench/report.py --readme README.md RESULT...         puts results into README.md, between its markers
python bench/report.py --readme README.md --check           fails unless README.md shows what its results say

RUN.json is what `pytest bench --benchmark-json` wrote, a RESULT is a committed bench/results/NAME/bench.json. README.md
keeps the names of its results in the first marker, so its figures have no other source.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from net2net.files import write_atomically
from plot import shares_png
from results import results
from tables import about, markdown, summary

BLOCK = re.compile(r"(?P<begin><!-- bench:(?P<files>[^\n]*) -->\n)(?P<body>.*?)(?P<end><!-- /bench -->)", re.DOTALL)


def write(run: dict[str, Any], folder: Path) -> list[Path]:
    """Write the files; the figure is left out, with a note, where matplotlib is not installed."""
    result = results(run)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[Path, str | bytes] = {
        folder / "bench.json": json.dumps(result, indent=1, allow_nan=False) + "\n",
        folder / "bench.md": markdown(result),
    }
    try:
        files[folder / "bench.png"] = shares_png(result)
    except ModuleNotFoundError as error:
        print(f"no figure: {error}", file=sys.stderr)
    for path, data in files.items():
        write_atomically(path, data)
    return list(files)


def block(readme: Path, paths: Sequence[Path]) -> str:
    """What stands between README.md's markers for these results."""
    parts = []
    for path in paths:
        result = json.loads(path.read_text())
        link = Path(os.path.relpath(path.with_name("bench.md"), readme.parent)).as_posix()
        parts += [about(result) + f"- everything that was measured: [{link}]({link})", summary(result)]
    return "".join(f"\n{part}\n" for part in parts) + ("\n" if parts else "")


def update(readme: Path, paths: Sequence[Path] | None) -> str:
    """README.md's text with the results of `paths` in it; None: of those that it names already.

    Raises:
        ValueError: README.md has no markers, or a result is not one.
    """
    text = readme.read_text()
    found = BLOCK.search(text)
    if found is None:
        raise ValueError(f"{readme} has no lines '<!-- bench: FILES -->' and '<!-- /bench -->'")
    if paths is None:
        paths = [readme.parent / name for name in found["files"].split()]
    names = [Path(os.path.relpath(path, readme.parent)).as_posix() for path in paths]
    try:
        body = block(readme, paths)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{', '.join(names)}: not a bench.json of today's form: {error!r}") from error
    begin = f"<!-- bench: {' '.join(names)} -->\n" if names else "<!-- bench: -->\n"
    return text[: found.start()] + begin + body + found["end"] + text[found.end() :]


def main(argv: Sequence[str] | None = None) -> int:
    """0: done; 1: README.md does not show what its results say, or a file is not what it should be."""
    description, _, usage = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="RUN.json FOLDER, or RESULT...")
    parser.add_argument("--readme", type=Path, metavar="README.md", help="put results into this file")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if --readme is not up to date")
    given = parser.parse_args(argv)
    if given.check and not given.readme:
        parser.error("--check needs --readme")
    if not given.readme and len(given.files) != 2:
        parser.error("two files are needed, RUN.json and FOLDER")
    try:
        if given.readme:
            return _readme(given.readme, given.files or None, given.check)
        run = json.loads(given.files[0].read_text())
        files = write(run, given.files[1])
    except (OSError, ValueError) as error:
        print(f"report.py: error: {error}", file=sys.stderr)
        return 1
    print(files[1].read_text(), end="")
    print("\nwrote", ", ".join(map(str, files)))
    return 0


def _readme(readme: Path, paths: Sequence[Path] | None, check: bool) -> int:
    text = update(readme, paths)
    if text == readme.read_text():
        return 0
    if check:
        print(f"{readme} does not show what its results say; run: python bench/report.py --readme {readme} RESULT...")
        return 1
    write_atomically(readme, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
