"""Figures of PRM training that need more than one panel."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from mmprm_lib.drawing import COLOURS, add_caption, new_figure


def reliability_by_epoch(history: Sequence[dict], *, caption: str = "") -> Figure:
    """Share of right steps by mean score, a panel per validated epoch (at most six, the first and the last among them).

    The area of a point is its share of the steps; on the dashed diagonal a score is the chance that a step is right.
    """
    epochs = [row for row in history if row.get("bins")]
    if len(epochs) > 6:
        epochs = [epochs[round(i * (len(epochs) - 1) / 5)] for i in range(6)]
    figure, panels = new_figure(max(4.6, 2.3 * len(epochs) + 0.4), 2.9, n_axes=max(1, len(epochs)), sharey=True)
    for axes, row in zip(panels, epochs, strict=False):
        bins = pd.DataFrame(row["bins"])
        axes.plot([0, 1], [0, 1], color="#999999", lw=1, ls="--")
        axes.plot(bins["mean_score"], bins["share_right"], color=COLOURS[0], lw=1)
        axes.scatter(bins["mean_score"], bins["share_right"], s=220 * bins["n"] / row["n"] + 4, color=COLOURS[0])
        axes.set(xlim=(-0.04, 1.04), ylim=(-0.06, 1.06), xticks=[0, 0.5, 1], xlabel="step score")
        auroc = "-" if row["auroc"] is None else f"{row['auroc']:.3f}"
        axes.set_title(f"epoch {row['epoch']:g}\nAUROC {auroc}\nBrier {row['brier']:.3f}", fontsize=9)
    panels[0].set_ylabel("share of right steps")
    n = f"n = {epochs[-1]['n']:,} steps; area: share of the steps; dashed: calibrated" if epochs else "no validation"
    return add_caption(figure, caption or n)
