"""The figure of notebook 12: a panel per kind of quality, tokens in plain numbers."""

import pandas as pd

from mmprm_lib import plots_cost


def frame() -> pd.DataFrame:
    """Two strategies, three settings, two kinds of quality."""
    rows = []
    for strategy, setting, n_tokens, f1, rmse in (
        ("exhaustive", "k = 1", 20, 0.7, 0.3), ("exhaustive", "k = 16", 320, 0.9, 0.1),
        ("adaptive, hard", "", 40, 0.9, 0.2),
    ):  # fmt: skip
        for against, metric, value in (("step truth", "macro_f1", f1), ("reference", "rmse", rmse)):
            rows.append((strategy, setting, against, metric, value, value - 0.01, value + 0.01, n_tokens))
    return pd.DataFrame(rows, columns="strategy setting against metric value low high n_tokens".split())


def test_panels_lines_and_labels():
    figure = plots_cost.quality_against_tokens(frame(), caption="40 solutions.")
    assert [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes] == [
        "macro F1 of hard labels", "error of the rate (RMSE)",
    ]  # fmt: skip
    first = figure.axes[0]
    assert first.get_xlabel() == "generated tokens per step" and first.get_xscale() == "log"
    assert {text.get_text() for text in first.texts} == {"1", "16"}  # k at the points of the exhaustive strategy
    names = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
    assert names == ["exhaustive", "adaptive, hard"]
    figure.draw_without_rendering()
    assert all("$" not in label.get_text() for label in first.get_xticklabels())


def test_nothing_to_show_is_no_error():
    assert len(plots_cost.quality_against_tokens(frame().iloc[:0]).axes) == 1
