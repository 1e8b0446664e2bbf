r"""Files of other projects as labelled solutions, and back: one pair (read, write) per format, named in `FORMATS`.

`read(path, strict=False, bad=None)` yields `foreign.Labelled`, one at a time; `write(path, examples, strict=True,
bad=None)` says how many rows it wrote. Steps, questions and everything else survive as they are (LaTeX, any Unicode,
control characters); what a format cannot hold is refused with its reason, never changed. Text that spells a special
token is text here (`steps.neutralise` sees to it later). Ids, strategy, tokens, and the policy, verdict, answer and
images where a format has no place for them, go under the key "mmprm" of a row, which other programs pass over.

| format            | a label there                | here                                   | lost when we write       |
|-------------------|------------------------------|----------------------------------------|--------------------------|
| visualprm_raw     | score, num_mc_correct,       | mc_score, n_correct, n_rollouts; None  | low, high, truth, marks, |
|                   | num_mc_total                 | where the total is 0 (not sampled)     | scores                   |
| visualprm         | "+" if score > 0, else "-"   | mc_score 1 or 0 (a class, not a rate)  | the rate, counts, as raw |
| mm_prm            | list of floats, one per span | mc_score; null: None                   | counts, as raw           |
| mm_prm_rows       | the same, before training    | the same                               | the same                 |
| mm_prm_evaluation | 0 or 1 per solution          | verdict (null: unknown), and `scores`  | all labels of steps      |
|                   |                              | of the PRM; all labels of steps None   |                          |
| prm800k           | rating -1, 0, 1, null        | marks; mc_score None                   | mc_score, counts, scores |
| math_shepherd     | "+" if a rollout is right    | mc_score 1 or 0 (a class)              | as visualprm             |
| processbench      | place of the first error     | marks 1 .. 1, -1, None ..; mc_score    | marks after it, neutral  |
|                   |                              | None; verdict on the answer            | ones; as prm800k         |
| omegaprm          | mc_value of a tree's node    | mc_score                               | counts, as raw           |

When reading, PRM800K loses the completions that were not chosen (`alternatives` reads them) and Math-Shepherd the names
"Step i: ". A mark is of a step, an mc_score of the prefix that ends with it: neither is taken for the other, unless
`scores_from_marks` or `marks_from_scores` is asked to. VisualPRM's checker counts what it could not judge as wrong:
n_unknown is 0 there. VisualProcessBench is read by `benchmark`. Sources: visualprm_data_pipeline.py and its
postprocess (OpenGVLab/InternVL); traverse.py, prm_data_format.py (ModalMinds/MM-PRM); openai/prm800k; 2312.08935;
2412.06559; 2406.06592.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .foreign import Labelled
from .interchange_mm_prm import (
    read_mm_prm,
    read_mm_prm_evaluation,
    read_omegaprm,
    write_mm_prm,
    write_mm_prm_evaluation,
    write_mm_prm_rows,
    write_omegaprm,
)  # fmt: skip
from .interchange_records import (
    first_steps,
    labelled_of,
    labelled_prefix,
    marks_from_scores,
    records_of,
    scores_from_marks,
)  # fmt: skip
from .interchange_text import (
    read_math_shepherd,
    read_prm800k,
    read_processbench,
    write_math_shepherd,
    write_prm800k,
    write_processbench,
)  # fmt: skip
from .interchange_visualprm import read_visualprm, read_visualprm_raw, write_visualprm, write_visualprm_raw

__all__ = [
    "FORMATS", "Labelled", "first_steps", "labelled_of", "labelled_prefix", "marks_from_scores", "read_math_shepherd",
    "read_mm_prm", "read_mm_prm_evaluation", "read_omegaprm", "read_prm800k", "read_processbench", "read_visualprm",
    "read_visualprm_raw", "records_of", "scores_from_marks", "write_math_shepherd", "write_mm_prm",
    "write_mm_prm_evaluation", "write_mm_prm_rows", "write_omegaprm", "write_prm800k", "write_processbench",
    "write_visualprm", "write_visualprm_raw",
]  # fmt: skip

FORMATS: dict[str, tuple[Callable[..., Iterator[Labelled]], Callable[..., int]]] = {
    "visualprm_raw": (read_visualprm_raw, write_visualprm_raw),
    "visualprm": (read_visualprm, write_visualprm),
    "mm_prm": (read_mm_prm, write_mm_prm),
    "mm_prm_rows": (read_mm_prm, write_mm_prm_rows),
    "mm_prm_evaluation": (read_mm_prm_evaluation, write_mm_prm_evaluation),
    "prm800k": (read_prm800k, write_prm800k),
    "math_shepherd": (read_math_shepherd, write_math_shepherd),
    "processbench": (read_processbench, write_processbench),
    "omegaprm": (read_omegaprm, write_omegaprm),
}
