#!/usr/bin/env python3
"""Draws the pictures of the documents, as SVG files in docs/pictures.

    scripts/pictures.py overview bench    overview and bench, each for light and dark pages
    scripts/pictures.py demo              demo.svg: runs demo/run.sh (VELLUM=PROGRAM) and records it
    scripts/pictures.py --check           fails if overview or bench is not what would be drawn

overview shows how layers, containers, the store and its fronts belong together. bench draws rows
of bench/RESULTS.md: this file names the rows, and every figure and version comes from the tables
and the text there; a row that is missing there is an error. Both are drawn the same on every
machine. demo is a recording, so it differs from run to run, and --check leaves it out.

The files name no other resources: no fonts, scripts or images.
"""

import argparse
import codecs
import html
import math
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from fcntl import ioctl

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PICTURES = os.path.join("docs", "pictures")
RESULTS = os.path.join("bench", "RESULTS.md")

SANS = "-apple-system, 'Segoe UI', Roboto, 'Noto Sans', Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"

# Each colour's value on a light and on a dark page.
COLOURS = {
    "page": ("#ffffff", "#0d1117"),
    "text": ("#1f2328", "#e6edf3"),
    "quiet": ("#59636e", "#9198a1"),
    "line": ("#8b949e", "#6e7681"),
    "card": ("#f6f8fa", "#161b22"),
    "edge": ("#d1d9e0", "#30363d"),
    "plain": ("#e8ecf0", "#262d36"),
    "base": ("#cfe0f3", "#1f3a5c"),
    "second": ("#cbe8dc", "#17463a"),
    "third": ("#e3d8f3", "#3d2f5e"),
    "own": ("#ffdf9e", "#6b4a0f"),
    "own-edge": ("#b7791f", "#d29922"),
    "ahead": ("#2f8f6b", "#3fa67f"),
    "behind": ("#c2703d", "#d98a55"),
    "shade": ("#fbf3ec", "#1c1712"),
}


class PictureError(Exception):
    """A picture can't be drawn; the text says why."""


# ---- SVG --------------------------------------------------------------------


def number(value):
    """Returns a coordinate as text, the same on every machine."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def element(name, content=None, **attributes):
    """Returns one element; `content` is text to be escaped, or a list of elements."""
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        words.append(f'{key}="{html.escape(number(value))}"')
    if content is None:
        return f"<{' '.join(words)}/>"
    inner = html.escape(content, quote=False) if isinstance(content, str) else "".join(content)
    return f"<{' '.join(words)}>{inner}</{name}>"


class Picture:
    """A list of elements with one of the two sets of colours."""

    def __init__(self, theme, width, height, title, description):
        self.column = ("light", "dark").index(theme)
        self.width, self.height = width, height
        self.title, self.description = title, description
        self.elements = []

    def colour(self, name):
        return COLOURS[name][self.column]

    def add(self, name, content=None, **attributes):
        for key in ("fill", "stroke"):
            if attributes.get(key) in COLOURS:
                attributes[key] = self.colour(attributes[key])
        self.elements.append(element(name, content, **attributes))

    def box(self, x, y, width, height, fill, stroke="none", **more):
        more.setdefault("rx", 6)
        self.add("rect", x=x, y=y, width=width, height=height, fill=fill, stroke=stroke, **more)

    def text(self, x, y, words, size=13, fill="text", **more):
        self.add("text", words, x=x, y=y, font_size=size, fill=fill, **more)

    def mono(self, x, y, words, size=11, fill="text", **more):
        self.text(x, y, words, size, fill, font_family=MONO, **more)

    def arrow(self, x, y, to_x, to_y):
        """Draws a level or upright line with a head at its end."""
        length = 7
        if y == to_y:
            side = 1 if to_x > x else -1
            stem = f"M{number(x)} {number(y)}H{number(to_x - side * length)}"
            back = to_x - side * length
            head = f"M{back} {y - 4}L{to_x} {y}L{back} {y + 4}Z"
        else:
            side = 1 if to_y > y else -1
            stem = f"M{number(x)} {number(y)}V{number(to_y - side * length)}"
            back = to_y - side * length
            head = f"M{x - 4} {back}L{to_x} {to_y}L{x + 4} {back}Z"
        self.add("path", d=stem, fill="none", stroke="line", stroke_width=1.5)
        self.add("path", d=head, fill="line")

    def svg(self):
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}"'
            f' viewBox="0 0 {self.width} {self.height}" role="img"'
            f' aria-labelledby="title description" font-family="{SANS}">'
        )
        lines = [
            head,
            element("title", self.title, id="title"),
            element("desc", self.description, id="description"),
            element("rect", width=self.width, height=self.height, fill=self.colour("page")),
            *self.elements,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"


# ---- overview ---------------------------------------------------------------

FRONTS = (
    ("containerd", "snapshotter and differ", "vellum serve containerd"),
    ("Docker", "graph driver plugin", "vellum serve docker"),
    ("People and scripts", "the vellum command", "vellum load, mount, diff"),
)
# Paths in the merged view, the layer each comes from, and that layer's colour.
TREE = (
    ("/bin/sh", "debian", "base"),
    ("/bin/python3", "python", "second"),
    ("/app/main.py", "app", "third"),
    ("/etc/hosts", "changed", "own"),
    ("/tmp/upload", "new", "own"),
)


def overview(theme):
    picture = Picture(
        theme,
        800,
        500,
        "How Vellum's parts belong together",
        "On the left are the programs that use Vellum's store: containerd through the snapshotter "
        "and differ, Docker through the graph driver plugin, and people and scripts with the "
        "vellum command. In the middle is the store. Read-only layers of images "
        "are stacked and shared: the layer debian lies below two images. Three containers have a "
        "writable layer each on top of an image. On the right, one container's layers are shown "
        "as one tree, by the kernel's overlay or by Vellum's union file system; each file comes "
        "from the uppermost layer that has it. Below, Podman and Buildah use the union file "
        "system as their mount program, with the layers of their own storage.",
    )
    left, left_width = 24, 180
    middle, middle_width = 244, 292
    right, right_width = 576, 200
    top, store_bottom, bottom = 28, 356, 472

    # The fronts, at even distances beside the store.
    card_height, free = 76, store_bottom - top - 3 * 76
    for index, front in enumerate(FRONTS):
        y = top + index * (card_height + free // 2)
        card(picture, left, y, left_width, card_height, *front)
        picture.arrow(left + left_width + 4, y + card_height // 2, middle - 4, y + card_height // 2)

    # The store: three containers over two images over one shared layer.
    picture.box(middle, top, middle_width, store_bottom - top, "card", "edge", rx=8)
    inset = middle + 16
    picture.text(inset, top + 27, "Store", 15, font_weight=600)
    whole = middle_width - 32
    gap = 10
    column = (whole - 2 * gap) // 3
    picture.text(inset, top + 53, "a writable layer for each container", 12, "quiet")
    row, height = top + 64, 44
    for index, name in enumerate(("ci", "web-1", "web-2")):
        layer(picture, inset + index * (column + gap), row, column, height, name, "own")
    for narrow, name, fill in (("make", "app", "third"), ("gcc", "python", "second")):
        row += height + gap
        layer(picture, inset, row, column, height, narrow, "plain")
        x, width = inset + column + gap, 2 * column + gap
        layer(picture, x, row, width, height, name, fill, middle=column // 2)
    row += height + gap
    layer(picture, inset, row, whole, height, "debian", "base", middle=column + gap // 2)
    picture.text(inset, row + height + 22, "read-only layers of images,", 12, "quiet")
    picture.text(inset, row + height + 38, "each kept once and shared", 12, "quiet")
    # A frame around what web-2 is made of.
    frame = inset + 2 * (column + gap) - 5
    picture.add(
        "rect", x=frame, y=top + 59, width=column + 10, height=row + height + 5 - top - 59, rx=9,
        fill="none", stroke="text", stroke_width=1.5,
    )

    # The merged view, and what shows it.
    tree_height = 176
    picture.box(right, top, right_width, tree_height, "card", "edge", rx=8)
    picture.text(right + 16, top + 27, "Container web-2", 15, font_weight=600)
    picture.text(right + 16, top + 47, "one tree, writable", 12, "quiet")
    for index, (path, origin, fill) in enumerate(TREE):
        y = top + 61 + index * 21
        edge = "own-edge" if fill == "own" else "edge"
        picture.box(right + 16, y, 12, 12, fill, edge, rx=3)
        picture.mono(right + 36, y + 10, path, 12)
        picture.text(right + right_width - 16, y + 10, origin, 12, "quiet", text_anchor="end")
    panel = top + tree_height + 36
    picture.arrow(right + right_width // 2, panel - 4, right + right_width // 2, panel - 32)
    picture.box(right, panel, right_width, bottom - panel, "card", "edge", rx=8)
    picture.text(right + 16, panel + 25, "Shown by", 13, font_weight=600)
    inner = right_width - 24
    picture.box(right + 12, panel + 38, inner, 40, "plain")
    centre = right + right_width // 2
    picture.text(centre, panel + 63, "the kernel's overlay", 13, text_anchor="middle")
    picture.text(centre, panel + 99, "or, where it can't serve,", 12, "quiet", text_anchor="middle")
    union = panel + 114
    picture.box(right + 12, union, inner, bottom - 12 - union, "plain")
    y = union + 38
    picture.text(centre, y, "Vellum's", 13, text_anchor="middle")
    picture.text(centre, y + 18, "union file system", 13, text_anchor="middle")
    picture.text(centre, y + 42, "on FUSE, root not needed", 12, "quiet", text_anchor="middle")
    y = panel + 32
    picture.arrow(frame + column + 14, y, right - 4, y)

    # Podman and Buildah keep layers themselves.
    lane = bottom - card_height
    card(
        picture, left, lane, left_width, card_height,
        "Podman, Buildah", "mount program", "vellum as fuse-overlayfs",
    )
    picture.arrow(left + left_width + 4, lane + 38, middle - 4, lane + 38)
    picture.box(
        middle, lane, middle_width, card_height, "none", "line", rx=8, stroke_dasharray="4 4"
    )
    picture.text(inset, lane + 33, "Layers in Podman's own storage", 13)
    picture.text(inset, lane + 53, "the store is not involved", 12, "quiet")
    picture.arrow(middle + middle_width + 4, lane + 38, right + 9, lane + 38)
    return picture.svg()


def card(picture, x, y, width, height, name, role, command):
    picture.box(x, y, width, height, "card", "edge", rx=8)
    picture.text(x + 14, y + 24, name, 13, font_weight=600)
    picture.text(x + 14, y + 43, role, 12, "quiet")
    picture.mono(x + 14, y + 62, command, 10.5, "quiet")


def layer(picture, x, y, width, height, name, fill, middle=None):
    """Draws a layer; its name is `middle` pixels from the left, or in the middle."""
    if fill == "own":
        picture.box(x, y, width, height, fill, "own-edge", stroke_dasharray="4 3")
    else:
        picture.box(x, y, width, height, fill, "edge")
    x += width // 2 if middle is None else middle
    picture.text(x, y + height // 2 + 5, name, 13, text_anchor="middle")


# ---- bench: reading RESULTS.md ----------------------------------------------


class Section:
    """A heading of RESULTS.md: its text, and its tables as (columns, rows), `**` left out."""

    def __init__(self, name):
        self.name, self.prose, self.tables = name, "", []

    def fail(self, what):
        raise PictureError(f'{RESULTS}, section "{self.name}": {what}')

    def version(self, program):
        """Returns the version of `program` that the section's text has."""
        found = re.search(re.escape(program) + r" (\d[\w.+-]*\w)", self.prose)
        return found[1] if found else self.fail(f"the text has no version of {program}")

    def table(self, *columns):
        """Returns the first table that has all these columns."""
        for names, rows in self.tables:
            if all(column in names for column in columns):
                return names, rows
        return self.fail(f"there is no table with the columns {', '.join(columns)}")

    def cells(self, what, *columns):
        """Returns the cells of the row named `what` in the first table with these columns."""
        names, rows = self.table(*columns)
        for row in rows:
            if row[0] == what:
                return [dict(zip(names, row))[column] for column in columns]
        return self.fail(f'the table with the columns {", ".join(columns)} has no row "{what}"')

    def figure(self, cell, what):
        """Returns the first number in a cell."""
        found = re.match(r"[\d,]*\d(?:\.\d+)?", cell)
        if found is None:
            self.fail(f'{what}: no number in "{cell}"')
        return float(found[0].replace(",", ""))

    def seconds(self, cell, what):
        """Returns a time such as `1.9 us` in seconds."""
        units = {"us": 1e-6, "ms": 1e-3, "s": 1}
        found = re.match(r"([\d.]+) (us|ms|s)\b", cell)
        if found is None:
            self.fail(f'{what}: no time in "{cell}"')
        return float(found[1]) * units[found[2]]


def read_results():
    """Returns the sections of RESULTS.md by name."""
    sections, section, table = {}, None, None
    with open(os.path.join(ROOT, RESULTS), encoding="utf-8") as file:
        for line in file.read().splitlines():
            heading = re.fullmatch(r"#+ (.+)", line)
            if heading:
                section = sections.setdefault(heading[1], Section(heading[1]))
            if not line.startswith("|") or section is None:
                table = None
                if section is not None:
                    section.prose += line.strip() + " "
                continue
            row = [cell.strip().replace("**", "") for cell in line.strip().strip("|").split("|")]
            if table is None:
                table = (row, [])
                section.tables.append(table)
            elif not all(re.fullmatch(r":?-+:?", cell) for cell in row):
                table[1].append(row)
    return sections


def section_of(sections, name):
    if name not in sections:
        raise PictureError(f'{RESULTS} has no section "{name}"')
    return sections[name]


# A row of the chart is (what, Vellum's time as text, [(the other, its time over Vellum's)]).


def contenders(section, what):
    """A row of a table with one line for each contender."""
    _, rows = section.table("what", "contender", "median", "ratio to Vellum")
    lines = {row[1]: row for row in rows if row[0] == what}
    own = lines.pop("vellum", None)
    if own is None:
        section.fail(f'there is no row "{what}" of vellum')
    others = [(name, section.figure(row[3], what)) for name, row in lines.items() if row[3]]
    if not others:
        section.fail(f'"{what}" has no ratio of another program')
    return what, time_text(section.figure(own[2], what)), others


def beside(section, what):
    """A row of a table with one column for each program, each cell a ratio."""
    names = ("dockerd", "podman", "skopeo")
    own, *cells = section.cells(what, "Vellum", *names)
    others = [(name, section.figure(cell, what)) for name, cell in zip(names, cells)]
    return what, time_text(section.figure(own, what)), others


def under_containerd(section, what, column):
    """A row of containerd's table, where the ratio is overlayfs's time over Vellum's."""
    own, ratio = section.cells(what, column, f"overlayfs / {column}")
    others = [("its overlayfs", section.figure(ratio, what))]
    return what, time_text(section.figure(own, what)), others


def union(section, what):
    """A row of the unions: the kernel's overlay, whose ratio is in brackets, and fuse-overlayfs."""
    own = section.cells(what, "vellum", "kernel", "bare")[0]
    bracket = re.search(r"\(([\d.]+)\)", own)
    if bracket is None:
        section.fail(f'{what}: no ratio in "{own}"')
    ratio = float(bracket[1])
    for names, rows in section.tables:
        if names == ["what", "vellum", "vellum-ring", "vellum-passthrough"]:
            slower = [section.figure(row[1], what) for row in rows if row[0] == what]
            if slower:
                own_time = time_text(section.seconds(own, what))
                return what, own_time, [("kernel's overlay", ratio), ("fuse-overlayfs", slower[0])]
    return section.fail(f'"{what}" has no ratio of fuse-overlayfs')


def chart_panels(sections):
    """Yields the panels of the chart as (heading, what it is compared with, rows)."""
    store = section_of(sections, "Benchmark results")
    registry = section_of(sections, "Registries and cp")
    containerd = section_of(sections, "containerd")
    unions = section_of(sections, "Unions")
    programs = re.search(r"\* (Docker version .*?) \* ", store.prose)
    if programs is None:
        store.fail("the text has no list that starts with the version of Docker")
    yield (
        "Store",
        programs[1].replace(" version ", " "),
        [
            contenders(store, "load, 10 layers, 562 MiB"),
            beside(registry, "pull, 10 gzip layers"),
            beside(registry, "push, 10 layers to be compressed"),
            contenders(store, "create + mount, 10 layers"),
        ],
    )
    yield (
        "Under containerd",
        f"containerd {containerd.version('containerd')}: with its own overlayfs, and with Vellum",
        [
            under_containerd(containerd, "pull", "vellum+diff"),
            under_containerd(containerd, "start and end of one container", "vellum"),
        ],
    )
    yield (
        "Union file system",
        f"fuse-overlayfs {unions.version('fuse-overlayfs')}; "
        f"the kernel's overlay of Linux {unions.version('Linux')}; Vellum reads /dev/fuse",
        [
            union(unions, "walk + stat of 100,000 files, warm"),
            union(unions, "open+read+close, 4 KiB, warm"),
            union(unions, "create + 4 KiB"),
            union(unions, "untar of 20,000 files"),
            union(unions, "append to a lower file"),
            union(unions, "1 GiB sequential read, cold"),
            union(unions, "one byte of a 1 GiB lower file"),
        ],
    )


def machine(sections):
    """Returns the machine and its kernel; file systems and dates differ from section to section."""
    store = section_of(sections, "Benchmark results")
    found = re.search(r"\* ([^*]*?\d cores[^*]*?Linux[^*]*?) \* ", store.prose)
    if found is None:
        store.fail("the text has no line about the machine")
    return "; ".join(found[1].split("; ")[:2])


def time_text(seconds):
    for unit, factor in (("s", 1), ("ms", 1e3)):
        if seconds * factor >= (0.1995 if unit == "s" else 0.995):
            return f"{digits(seconds * factor)} {unit}"
    return f"{digits(seconds * 1e6)} \N{MICRO SIGN}s"


def digits(value):
    """Returns at least two significant digits; a half is rounded up."""
    value *= 1 + 1e-9
    places = 0 if value >= 9.95 else 1 if value >= 0.995 else 2
    return f"{value:,.{places}f}"


# ---- bench: drawing ---------------------------------------------------------

TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
AXIS_LEFT, AXIS_RIGHT = 392, 736
HEADING, PITCH, BETWEEN = 56, 15, 10  # heights of a panel's heading, a bar, the gap between rows


def along(ratio):
    """Returns where a ratio is on the chart's logarithmic axis, in pixels."""
    share = math.log(ratio / TICKS[0]) / math.log(TICKS[-1] / TICKS[0])
    return round(AXIS_LEFT + share * (AXIS_RIGHT - AXIS_LEFT), 1)


def bench(theme):
    sections = read_results()
    panels = list(chart_panels(sections))
    head, foot = 66, 80
    height = head + sum(panel_height(rows) for _, _, rows in panels) + foot
    told = "; ".join(
        f"{what}: Vellum {own}, " + ", ".join(f"{name} {digits(ratio)}" for name, ratio in others)
        for _, _, rows in panels
        for what, own, others in rows
    )
    picture = Picture(
        theme,
        800,
        height,
        "Times of other programs as multiples of Vellum's",
        "A bar chart with a logarithmic axis. Each bar is another program's time over Vellum's in "
        "the same operation: above 1, Vellum is faster; below 1, Vellum is slower. " + told + ".",
    )
    one = along(1)
    picture.text(24, 36, "Time taken, as a multiple of Vellum's", 16, font_weight=600)
    picture.text(24, 56, "logarithmic scale", 12, "quiet")
    picture.text(
        one - 8, 36, "\N{LEFTWARDS ARROW} Vellum is slower", 12, "behind", font_weight=600,
        text_anchor="end",
    )
    picture.text(one + 8, 36, "Vellum is faster \N{RIGHTWARDS ARROW}", 12, "ahead", font_weight=600)
    y = head
    for name, compared, rows in panels:
        picture.text(24, y + 27, name, 14, font_weight=600)
        picture.text(24, y + 45, compared, 12, "quiet")
        panel(picture, y + HEADING, y + panel_height(rows), rows, one)
        y += panel_height(rows)
    for tick in TICKS:
        for at in (head - 10, y + 16):
            label = f"{tick:g}\N{MULTIPLICATION SIGN}"
            picture.text(along(tick), at, label, 11, "quiet", text_anchor="middle")
    source = f"Figures from {RESULTS}, which has all rows and says how and when each was measured."
    picture.text(24, height - 37, source, 11.5, "quiet")
    picture.text(24, height - 20, machine(sections), 11.5, "quiet")
    return picture.svg()


def row_height(others):
    return max(len(others), 2) * PITCH + BETWEEN


def panel_height(rows):
    return HEADING + sum(row_height(others) for _, _, others in rows)


def panel(picture, top, bottom, rows, one):
    """Draws the axis and the rows of one panel."""
    picture.box(AXIS_LEFT, top, one - AXIS_LEFT, bottom - top, "shade", rx=0)
    for tick in TICKS:
        line = f"M{number(along(tick))} {top}V{bottom}"
        picture.add("path", d=line, stroke="text" if tick == 1 else "edge", stroke_width=1)
    y = top + BETWEEN // 2
    for what, own, others in rows:
        picture.text(24, y + 11, what, 12.5)
        picture.text(24, y + 27, f"Vellum {own}", 11.5, "quiet")
        start = y + (PITCH // 2 if len(others) == 1 else 0)
        for index, (other, ratio) in enumerate(others):
            bar(picture, start + index * PITCH, other, ratio, one)
        y += row_height(others)


def bar(picture, y, other, ratio, one):
    """Draws one bar from 1 to `ratio`, with the other program's name and the ratio."""
    picture.text(AXIS_LEFT - 40, y + 11, other, 11.5, "quiet", text_anchor="end")
    end = along(min(max(ratio, TICKS[0]), TICKS[-1] * 1.15))
    ahead = ratio >= 1
    start, width = (one, end - one) if ahead else (end, one - end)
    fill = "ahead" if ahead else "behind"
    picture.box(start, y + 2, max(round(width, 1), 1.5), 10, fill, rx=1)
    if ratio > TICKS[-1]:
        # A gap in the bar says that the scale ends before the bar does.
        picture.add("path", d=f"M{number(end - 14)} {y + 14}l6 -14h4l-6 14Z", fill="page")
    where = {"x": end + 5} if ahead else {"x": end - 5, "text_anchor": "end"}
    # The rim keeps the axis's lines out of the digits.
    rim = {"stroke": "page" if ahead else "shade", "stroke_width": 4, "paint_order": "stroke"}
    picture.text(y=y + 11, words=digits(ratio), size=11.5, **where, **rim)


# ---- demo -------------------------------------------------------------------

COLUMNS, ROWS = 104, 32
LINE, PADDING, BAR = 17, 22, 36
LONGEST_PAUSE_S = 1.0  # longer waits are cut to this
LINE_S = 0.04  # lines come at least this far apart
AFTER_COMMAND_S = 0.5
BEFORE_STEP_S = 2.5  # time to read a step before the next one begins
AT_END_S = 6
MOST_BYTES = 100_000
# A terminal's own colours, on light and dark pages alike.
TERMINAL = {"page": "#161b22", "bar": "#21262d", "edge": "#3d444d", "dot": "#484f58"}
STYLES = {"": "", "bold": "b", "dim": "d"}


def record(argv):
    """Runs a program in a pseudo-terminal; returns its output as [(seconds, text)]."""
    begin = time.monotonic()
    child, terminal = pty.fork()
    if child == 0:
        os.environ.pop("NO_COLOR", None)
        os.environ.update(TERM="xterm-256color", LC_ALL="C.UTF-8", TMPDIR="/tmp")
        try:
            os.execv(argv[0], argv)
        finally:
            os._exit(127)
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    pieces = []
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        select.select([terminal], [], [])
        try:
            read = os.read(terminal, 1 << 16)
        except OSError:  # what a pseudo-terminal answers when the program has ended
            read = b""
        if not read:
            break
        pieces.append((time.monotonic() - begin, decoder.decode(read)))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(terminal)
    if status != 0:
        tail = "".join(text for _, text in pieces)[-2000:]
        raise PictureError(f"{argv[0]} ended with status {status}:\n{tail}")
    return pieces


def screen_lines(pieces):
    """Returns the lines as [(seconds, [(style, text)])], each with the time it began."""
    lines, cells, column, style, began = [], [], 0, "", None
    for seconds, text in pieces:
        for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\s\S]", text):
            began = seconds if began is None else began
            if token == "\n":
                lines.append((began, runs(cells)))
                cells, column, began = [], 0, None
            elif token == "\r":
                column = 0
            elif token.startswith("\x1b["):
                style = {"\x1b[1m": "bold", "\x1b[2m": "dim"}.get(token, "")
            elif token >= " ":
                cells[column : column + 1] = [(style, token)]
                column += 1
    return lines


def runs(cells):
    joined = []
    for style, character in cells:
        if joined and joined[-1][0] == style:
            joined[-1][1].append(character)
        else:
            joined.append((style, [character]))
    return [(style, "".join(characters)) for style, characters in joined]


def steady(text):
    """Replaces what differs between runs and machines, and shortens digests to fit."""
    text = re.sub(r"/tmp/vellum-demo\.\w+", "/tmp/vellum-demo", text)
    text = text.replace(ROOT + "/", "")
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", "\\1\N{HORIZONTAL ELLIPSIS}", text)


def wrapped(parts):
    """Cuts a line's parts into rows of the terminal's width."""
    row, used = [], 0
    for style, text in parts:
        while used + len(text) > COLUMNS:
            row.append((style, text[: COLUMNS - used]))
            text = text[COLUMNS - used :]
            yield row
            row, used = [], 0
        row.append((style, text))
        used += len(text)
    yield row


def paced(lines):
    """Returns the rows with the times at which they are shown."""
    rows, shown, before = [], 0.0, 0.0
    texts = ["".join(text for _, text in parts) for _, parts in lines]
    for index, (seconds, parts) in enumerate(lines):
        wait = min(max(seconds - before, LINE_S), LONGEST_PAUSE_S)
        if index and texts[index - 1].startswith("   $ "):
            wait = max(wait, AFTER_COMMAND_S)
        follows = lines[index + 1][1] if index + 1 < len(lines) else []
        if not texts[index] and follows and follows[0][0] == "bold":
            wait = BEFORE_STEP_S
        before = seconds
        for row in wrapped([(style, steady(text)) for style, text in parts]):
            shown += wait
            rows.append((shown, row))
            wait = LINE_S
    return rows


def demo():
    rows = paced(screen_lines(record([os.path.join(ROOT, "demo", "run.sh")])))
    if not rows:
        raise PictureError("the demo printed nothing")
    length = rows[-1][0] + AT_END_S
    width, height = 800, BAR + ROWS * LINE + 2 * PADDING - 12
    keyframes, scroll, texts = [], [], []
    for index, (shown, parts) in enumerate(rows):
        share = f"{100 * shown / length:.2f}%"
        if index >= ROWS:
            scroll.append(f"{share}{{transform:translateY({(ROWS - 1 - index) * LINE}px)}}")
        if not any(text.strip() for _, text in parts):
            continue
        keyframes.append(f"@keyframes l{index}{{0%{{opacity:0}}{share}{{opacity:1}}}}")
        content = [
            element("tspan", text, **({"class_": STYLES[style]} if STYLES[style] else {}))
            for style, text in parts
        ]
        texts.append(
            element("text", content, y=(index + 1) * LINE, style=f"animation-name:l{index}")
        )
    style = (
        f".r text{{font-size:12px;fill:#d1d7e0;white-space:pre;"
        f"animation:{length:.1f}s step-end infinite}}"
        ".r .b{font-weight:700;fill:#f0f6fc}.r .d{fill:#8fb8e8}"
        f".r{{animation:scroll {length:.1f}s step-end infinite}}"
        "@media (prefers-reduced-motion:reduce){.r,.r text{animation:none}}"
        "@keyframes scroll{0%{transform:translateY(0)}" + "".join(scroll) + "}"
    )
    top = BAR + PADDING - 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" role="img" aria-labelledby="title description"'
        f' font-family="{MONO}">',
        element("title", "A recording of Vellum's demo", id="title"),
        element(
            "desc",
            "A terminal with the output of make demo: an image of ten layers is loaded, a "
            "container is created from it, mounted and changed; the changes are listed and "
            "committed to a new image, which is saved and run; then everything is removed. Long "
            "pauses are cut, pauses to read are added before each step, and digests are "
            "shortened; the times in the text are the demo's own.",
            id="description",
        ),
        element("style", [style, *keyframes]),
        element(
            "rect", x=0.5, y=0.5, width=width - 1, height=height - 1, rx=8,
            fill=TERMINAL["page"], stroke=TERMINAL["edge"],
        ),
        element("path", d=f"M1 {BAR}H{width - 1}", stroke=TERMINAL["edge"]),
        *(
            element("circle", cx=20 + 18 * index, cy=BAR // 2, r=5, fill=TERMINAL["dot"])
            for index in range(3)
        ),
        element(
            "text", "make demo", x=width // 2, y=BAR // 2 + 4, text_anchor="middle", font_size=12,
            fill="#9198a1",
        ),
        # From below the row that has just scrolled away to below the last one.
        element(
            "clipPath",
            [element("rect", y=top + 5, width=width, height=ROWS * LINE + 1)],
            id="screen",
        ),
        f'<g clip-path="url(#screen)"><g transform="translate({PADDING} {top})">',
        '<g class="r" xml:space="preserve">',
        *texts,
        "</g></g></g>",
        "</svg>",
    ]
    text = "\n".join(lines) + "\n"
    size = len(text.encode())
    if size > MOST_BYTES:
        raise PictureError(f"the demo's picture has {size} bytes; at most {MOST_BYTES}")
    return text


# ---- the command ------------------------------------------------------------

THEMED = {"overview": overview, "bench": bench}


def drawn(name):
    """Yields the files of one picture as (path below ROOT, text)."""
    if name == "demo":
        yield os.path.join(PICTURES, "demo.svg"), demo()
        return
    for theme in ("light", "dark"):
        yield os.path.join(PICTURES, f"{name}-{theme}.svg"), THEMED[name](theme)


def differs(path, text):
    try:
        with open(os.path.join(ROOT, path), encoding="utf-8") as file:
            return file.read() != text
    except FileNotFoundError:
        return True


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="overview, bench or demo")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    arguments = parser.parse_args()
    for name in arguments.pictures:
        if name not in (*THEMED, "demo"):
            parser.error(f"no such picture: {name}")
    if arguments.check == bool(arguments.pictures):
        parser.error("name pictures, or --check")
    old = []
    for name in arguments.pictures or THEMED:
        for path, text in drawn(name):
            if arguments.check:
                old += [(path, name)] if differs(path, text) else []
                continue
            os.makedirs(os.path.join(ROOT, PICTURES), exist_ok=True)
            with open(os.path.join(ROOT, path), "w", encoding="utf-8") as file:
                file.write(text)
            print(path)
    for path, name in old:
        print(f"{path} is not what scripts/pictures.py {name} draws: run it", file=sys.stderr)
    return 1 if old else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PictureError as error:
        sys.exit(f"pictures: {error}")
