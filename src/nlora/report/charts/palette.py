"""The colors of a report by role, in a light and a dark theme.

>>> LIGHT["accent"], DARK["accent"], heat_role(0.5)
('#0b6b70', '#6ccac3', 'heat8')

Series have Okabe and Ito's colors, darkened in the light theme to a contrast of 3 or more. The heat scale is monotone
in luminance, so it reads in gray and with every kind of color vision.
"""

from __future__ import annotations

SERIES = 6
"""The number of colors for series; further series reuse them with another dash."""
DASHES = ("", "6 3", "2 3", "9 3 2 3")

_HEAT_STEPS = 16
_HEAT_LIGHT = ("#f0f3ec", "#b3d8c9", "#58a5a3", "#17636f", "#0a3a4a")
_HEAT_DARK = ("#1c2528", "#1f4852", "#2b7480", "#5fb2aa", "#c9ecd8")

_BASE = {
    # role: (light, dark)
    "paper": ("#fdfcf9", "#14181a"),
    "panel": ("#f4f3ee", "#1c2224"),
    "ink": ("#1d2426", "#e7e9e5"),
    "muted": ("#5a6568", "#9fabac"),
    "rule": ("#cfd3ce", "#3b4447"),
    "faint": ("#e6e7e1", "#282f32"),
    "accent": ("#0b6b70", "#6ccac3"),
    "warn": ("#a33b00", "#f0a070"),
    "series0": ("#0072b2", "#56b4e9"),
    "series1": ("#c84e00", "#f08a4b"),
    "series2": ("#007f5b", "#35c79e"),
    "series3": ("#a84f87", "#e39cc6"),
    "series4": ("#8a6500", "#e6b032"),
    "series5": ("#5e4aa8", "#b9a8f2"),
}


def contrast(a: str, b: str) -> float:
    """The contrast ratio of two #rrggbb colors, 1 to 21, as WCAG 2 defines it."""
    bright, dark = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def heat_role(share: float) -> str:
    """The role of a position on the heat scale. share: 0 to 1, clipped."""
    step = round(min(max(share, 0.0), 1.0) * (_HEAT_STEPS - 1))
    return f"heat{step}"


def series_role(index: int) -> str:
    """The color of the series with this index, from 0."""
    return f"series{index % SERIES}"


def series_dash(index: int) -> str:
    """Its dash pattern: solid at first, another one each time the colors repeat."""
    return DASHES[index // SERIES % len(DASHES)]


def css() -> str:
    """Custom properties for light, dark and printed pages, and classes f-, s-, b- (fill, stroke, box) per role.

    <html data-theme> overrides the system's theme. Print is always light.
    """
    light, dark = _properties(LIGHT), _properties(DARK)
    return "\n".join(
        [
            f":root{{color-scheme:light;{light}}}",
            f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}",
            f":root[data-theme=dark]{{color-scheme:dark;{dark}}}",
            f"@media print{{:root:root:root{{color-scheme:light;{light}--paper:#ffffff;}}}}",
            *(f".f-{role}{{fill:var(--{role})}}.s-{role}{{stroke:var(--{role})}}" for role in LIGHT),
            *(
                f".b-{role}{{background:var(--{role});color:var(--on-{role})}}"
                for role in LIGHT
                if role.startswith("heat")
            ),
        ]
    )


def _properties(colors: dict[str, str]) -> str:
    return "".join(f"--{role}:{value};" for role, value in colors.items())


def _theme(which: int, heat: tuple[str, ...]) -> dict[str, str]:
    colors = {role: pair[which] for role, pair in _BASE.items()}
    for step in range(_HEAT_STEPS):
        color = _between(heat, step / (_HEAT_STEPS - 1))
        colors[f"heat{step}"] = color
        colors[f"on-heat{step}"] = max(("#000000", "#ffffff"), key=lambda text: contrast(text, color))
    return colors


def _between(stops: tuple[str, ...], share: float) -> str:
    place = share * (len(stops) - 1)
    index = min(int(place), len(stops) - 2)
    part = place - index
    mixed = (
        round(a + (b - a) * part) for a, b in zip(_rgb(stops[index]), _rgb(stops[index + 1]), strict=True)
    )
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _luminance(color: str) -> float:
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in _rgb(color))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


LIGHT = _theme(0, _HEAT_LIGHT)
DARK = _theme(1, _HEAT_DARK)
