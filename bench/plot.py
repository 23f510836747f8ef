"""plot.py - panels of curves as an SVG that is readable on light and dark pages. Standard library only.

    plot.svg(title, [Panel(...), ...], [(name, colour), ...])
"""
import html
import math

# Each colour for a light page and for a dark one.
COLOURS = {"blue": ("#0b5cc4", "#6cb0ff"), "red": ("#c0301c", "#ff8a75"), "green": ("#1a7f37", "#56d364"),
           "violet": ("#8250df", "#c297ff"), "grey": ("#6e7781", "#9aa4ae")}
INK = {"ink": ("#1f2328", "#e6edf3"), "line": ("#8c959f", "#6e7681"), "grid": ("#d8dee4", "#30363d")}
WIDE, HIGH, TOP, LEFT, GAP = 290, 230, 66, 62, 90


def style():
    def rules(shade):
        names = {**COLOURS, **INK}.items()
        return "".join(f".{n} {{ stroke: {c[shade]} }} .{n}-fill {{ fill: {c[shade]} }} " for n, c in names)

    return f"<style>{rules(0)}@media (prefers-color-scheme: dark) {{ {rules(1)}}}</style>"


class Axis:
    """Where values lie between the ends of an axis, from 0 to 1."""

    def __init__(self, label, ticks, log=False, ends=None, text="{:g}"):
        self.label, self.ticks, self.log, self.text = label, ticks, log, text
        self.low, self.high = (self.scale(v) for v in ends or (ticks[0], ticks[-1]))

    def scale(self, value):
        return math.log10(value) if self.log else value

    def at(self, value):
        return (self.scale(value) - self.low) / (self.high - self.low)


class Panel:
    """curves: [(colour, mark, [(x, y), ...])], mark one of "line", "dashed", "crosses"."""

    def __init__(self, title, x, y, curves):
        self.title, self.x, self.y, self.curves = title, x, y, curves

    def place(self, left, point):
        return left + WIDE * self.x.at(point[0]), TOP + HIGH * (1 - self.y.at(point[1]))

    def frame(self, left):
        out = []
        for tick in self.y.ticks:
            _, y = self.place(left, (self.x.ticks[0], tick))
            out.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{left + WIDE}" y2="{y:.1f}"/>')
            out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{self.y.text.format(tick)}</text>')
        for tick in self.x.ticks:
            x, _ = self.place(left, (tick, self.y.ticks[0]))
            text = self.x.text.format(tick)
            out.append(f'<text x="{x:.1f}" y="{TOP + HIGH + 18}" text-anchor="middle">{text}</text>')
        middle = left + WIDE / 2
        out.append(f'<rect class="line" x="{left}" y="{TOP}" width="{WIDE}" height="{HIGH}" fill="none"/>')
        out.append(f'<text x="{middle}" y="{TOP + HIGH + 38}" text-anchor="middle">{html.escape(self.x.label)}</text>')
        out.append(f'<text x="{left}" y="{TOP - 8}">{html.escape(self.title)}</text>')
        return out

    def draw(self, left):
        out = self.frame(left)
        for colour, mark, points in self.curves:
            places = [self.place(left, p) for p in points]
            if mark == "crosses":
                out += [f'<path class="{colour}" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8" stroke-width="2"/>'
                        for x, y in places]
                continue
            dash = ' stroke-dasharray="5 4"' if mark == "dashed" else ""
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            out.append(f'<polyline class="{colour}" points="{line}" fill="none" stroke-width="2"{dash}/>')
            if mark == "line":
                out += [f'<circle class="{colour}-fill" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places]
        return out


def svg(title, panels, legend):
    wide, high = LEFT + len(panels) * (WIDE + GAP) - GAP + 28, TOP + HIGH + 54
    names = " ".join(f'<tspan class="{colour}-fill">{html.escape(name)}</tspan>' for name, colour in legend)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" '
           'font-family="sans-serif" font-size="12">', style(), f'<g class="ink-fill">',
           f'<text x="{LEFT}" y="18" font-size="13">{html.escape(title)}</text>',
           f'<text x="{LEFT}" y="38" xml:space="preserve">{names.replace("</tspan> ", "</tspan>   ")}</text>']
    for i, panel in enumerate(panels):
        out += panel.draw(LEFT + i * (WIDE + GAP))
    return "\n".join(out + ["</g></svg>"]) + "\n"
