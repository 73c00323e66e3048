"""The picture at the top of the README and of the site: `python docs/overview.py` draws it.

Four ways to compare, from left to right and from top to bottom: a plain convolution, a static
and a dynamic neural similarity, and PDDM. The matrix of the static one is a learned one, from the
ledger: that of the third layer, minus the identity."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
BLUE, RED, GREEN = "#1c5d99", "#b5412d", "#2b7a4b"
stroke = np.array([[0.1, 0.8, 0.2], [0.2, 0.9, 0.3], [0.6, 0.7, 0.1]])
edge = np.array([[-0.6, 0.9, -0.3], [-0.5, 1.0, -0.4], [-0.2, 0.8, -0.6]])


def tile(ax, values, center, size, cmap="RdBu_r", bound=1.0):
    "A small matrix as colored squares."
    x, y = center
    extent = (x - size / 2, x + size / 2, y - size / 2, y + size / 2)
    ax.imshow(values, extent=extent, cmap=cmap, vmin=-bound, vmax=bound, zorder=2)
    box = plt.Rectangle(extent[::2], size, size, fill=False, ec="#333333", lw=1, zorder=3)
    ax.add_patch(box)


def word(ax, x, y, text, **more):
    ax.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 14, **more})


def panel(ax, title, formula, line):
    "An empty panel with its three lines of text."
    ax.set(xlim=(0, 10), ylim=(0, 6), aspect="equal")
    ax.set_axis_off()
    word(ax, 0, 5.6, title, ha="left", weight="bold", fontsize=15, color=BLUE)
    word(ax, 10, 5.6, formula, ha="right", fontsize=15)
    word(ax, 0, 0.25, line, ha="left", fontsize=13, color="#333333")


def patch_and_filter(ax):
    tile(ax, stroke, (1.5, 3), 2.4, cmap="Greys")
    tile(ax, edge, (8.5, 3), 2.4)
    word(ax, 1.5, 1.35, "patch", fontsize=12)
    word(ax, 8.5, 1.35, "filter", fontsize=12)


def learned() -> np.ndarray:
    "M - I of a trained layer, from the ledger, scaled to its largest number."
    from nsl_repro.results.ledger import load_published
    from nsl_repro.results.pages import learned_layers

    M = learned_layers(load_published(), "cifar10")[2]
    return M / abs(M).max()


def draw() -> plt.Figure:
    figure, axes = plt.subplots(2, 2, figsize=(6.3, 4.3), facecolor="white")
    plain, static, dynamic, pddm = axes.flat
    panel(plain, "plain", "$W^T X$", "the inner product")
    patch_and_filter(plain)
    plain.annotate("", (7.1, 3), (2.9, 3), arrowprops=dict(arrowstyle="<->", lw=2, color="#333333"))

    panel(static, "static", "$W^T M\\,X$", "$M$ is learned, then folded in")
    patch_and_filter(static)
    tile(static, learned(), (5, 3), 3)
    word(static, 5, 1.1, "$M$", fontsize=13)

    panel(dynamic, "dynamic", "$W^T M(X)\\,X$", "$M$ is predicted at every place")
    rng = np.random.default_rng(3)
    yy, xx = np.mgrid[-1:1:24j, -1:1:24j]
    tile(dynamic, np.exp(-8 * (np.hypot(xx, yy) - 0.6) ** 2), (2.3, 3), 3.6, cmap="Greys")
    for (x, y), at in (((1.4, 4.2), 4.4), ((3.3, 3.3), 3.0), ((1.9, 1.8), 1.6)):
        box = plt.Rectangle((x - 0.3, y - 0.3), 0.6, 0.6, fill=False, ec=RED, lw=2, zorder=4)
        dynamic.add_patch(box)
        dynamic.plot([x + 0.3, 5.6], [y, at], color=RED, lw=1.2, zorder=4)
        tile(dynamic, np.diag(rng.uniform(-1, 1, 9)), (6.3, at), 1.25)
    tile(dynamic, edge, (8.9, 3), 1.8)
    word(dynamic, 8.9, 1.75, "filter", fontsize=12)

    panel(pddm, "PDDM", "$S(x, y)$", "it matters where they lie")
    for center in np.stack([np.full(5, 1.6), np.linspace(1.4, 4.6, 5)], 1):
        pddm.plot(*(center + rng.normal(0, 0.12, (14, 2))).T, ".", ms=4)
    pddm.plot(*(np.array([7.4, 3.0]) + rng.normal(0, 0.75, (30, 2))).T, ".", ms=4, color=GREEN)
    two = dict(marker="o", mfc="none", ms=8, lw=2)
    pddm.plot([1.6, 1.6], [2.2, 3.8], color=RED, **two)
    pddm.plot([7.2, 7.2], [2.2, 3.8], color=GREEN, **two)
    word(pddm, 2.2, 3.0, "unlike", ha="left", color=RED)
    word(pddm, 8.4, 4.7, "alike", color=GREEN)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.99, wspace=0.08, hspace=0.06)
    return figure


if __name__ == "__main__":
    draw().savefig(HERE / "overview.png", dpi=130, metadata={"Software": None})
