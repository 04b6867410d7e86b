"""Draws what a program printed as an SVG picture of a terminal: terminal_svg.py TITLE <TEXT >SVG"""

import html
import re
import sys

LINE, TOP, CHAR = 17, 44, 7.9
COLORS = [
    (re.compile(r"kill -9|interrupted:"), "#ff7b72"),
    (re.compile(r"has answered|as it was before|is back|independent check:|^Lost: nothing"), "#7ee787"),
    (re.compile(r"^(\d\. |The session|A cluster|What was lost)"), "#ffffff"),
]

lines = [line.rstrip("\n") for line in sys.stdin]
lines = [line if len(line) <= 118 else line[:117] + "…" for line in lines]
width, height = int(max(map(len, lines)) * CHAR + 40), TOP + LINE * len(lines) + 16
print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
      'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="12.5">')
print(f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>')
for number, color in enumerate(("#ff5f57", "#febc2e", "#28c840")):
    print(f'<circle cx="{20 + 18 * number}" cy="18" r="5.5" fill="{color}"/>')
print(f'<text x="{width // 2}" y="22" fill="#8b949e" text-anchor="middle">{html.escape(sys.argv[1])}</text>')
for number, line in enumerate(lines):
    color = next((color for pattern, color in COLORS if pattern.search(line)), "#c9d1d9")
    weight = ' font-weight="bold"' if color == "#ffffff" else ""
    print(f'<text x="20" y="{TOP + LINE * number + 8}" fill="{color}"{weight} xml:space="preserve">{html.escape(line)}</text>')
print("</svg>")
