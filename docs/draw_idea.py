"""Draws docs/images/idea-light.png and idea-dark.png: where two tasks' updates meet, without and with the penalty.

    python docs/draw_idea.py

The shares are those of the demo (docs/weight.md): 87 % without the penalty, 26 % with it.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap, to_rgb

from nlora.report.charts.palette import DARK, LIGHT

SIDE = 14
"""Rows and columns of the sketched weight matrix."""
ROWS = (
    # title, note, entries that one task changes, entries that both change
    ("LoRA", "no penalty", 0.93, 0.87),
    ("N-LoRA", "+ λ Σ|ΔW|", 0.51, 0.26),
)


def changed_entries(share: float, shared: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two boolean (SIDE, SIDE) masks that each hold about `share` of the entries, and `shared` of them together."""
    total = SIDE * SIDE
    both, one = round(shared * total), round((share - shared) * total)
    order = np.random.default_rng(seed).permutation(total)
    first, second = np.zeros(total, bool), np.zeros(total, bool)
    first[order[: both + one]] = True
    second[np.concatenate([order[:both], order[both + one : both + 2 * one]])] = True
    return first.reshape(SIDE, SIDE), second.reshape(SIDE, SIDE)


def _mixed(color: tuple[float, ...], ground: tuple[float, ...], share: float = 0.55) -> tuple[float, ...]:
    return tuple(share * c + (1 - share) * g for c, g in zip(color, ground, strict=True))


def draw(colors: dict[str, str], target: Path) -> None:
    """One picture in the colors of a theme."""
    figure, axes = plt.subplots(2, 3, figsize=(9.2, 5.5), facecolor=colors["paper"])
    figure.subplots_adjust(left=0.14, right=0.97, top=0.9, bottom=0.09, wspace=0.22, hspace=0.28)
    blank, first_task, second_task, collision = (
        to_rgb(colors[r]) for r in ("faint", "series0", "series2", "warn")
    )
    # Pale, so that the collisions stand out.
    cells = ListedColormap([blank, _mixed(first_task, blank), _mixed(second_task, blank), collision])
    for number, (row, (title, note, share, shared)) in enumerate(zip(axes, ROWS, strict=True)):
        first, second = changed_entries(share, shared, seed=number)
        panels = (first * 1, second * 2, first * 1 + second * 2)
        captions = ("", "", f"both change {round(100 * shared)} %")
        for ax, panel, caption in zip(row, panels, captions, strict=True):
            ax.pcolormesh(panel[::-1], cmap=cells, vmin=0, vmax=3, edgecolors=colors["paper"], linewidth=0.8)
            ax.set_aspect("equal")
            ax.set_axis_off()
            ax.text(SIDE / 2, -1.1, caption, ha="center", va="center", color=colors["warn"], fontsize=12)
        for ax, sign in zip(row[1:], ("+", "="), strict=True):
            ax.text(-2.2, SIDE / 2, sign, ha="center", va="center", color=colors["ink"], fontsize=20)
        row[0].text(-6.6, SIDE / 2 + 0.5, title, color=colors["ink"], fontsize=12, weight="bold")
        row[0].text(-6.6, SIDE / 2 - 1.4, note, color=colors["muted"], fontsize=11)
    heads = (
        ("update of task A", "series0"),
        ("update of task B", "series2"),
        ("the sum, in the model", "ink"),
    )
    for ax, (head, role) in zip(axes[0], heads, strict=True):
        ax.text(SIDE / 2, SIDE + 1.1, head, ha="center", color=colors[role], fontsize=12)
    figure.savefig(target, dpi=150, facecolor=colors["paper"], metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    images = Path(__file__).parent / "images"
    draw(LIGHT, images / "idea-light.png")
    draw(DARK, images / "idea-dark.png")


if __name__ == "__main__":
    main()
