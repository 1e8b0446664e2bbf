"""How many tokens a notebook writes, reads and trains on, from its parameters and those of the run that it reads."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Text(NamedTuple):
    """Mean lengths in tokens: of a question with its template, a solution and its number of steps, a judged step."""

    question: int
    solution: int
    n_steps: float
    judged: int


# the embedded world (results/tiny: 06_best_of_n, 03_mc_labeling, 07_generative_prm)
WORLD = Text(question=45, solution=32, n_steps=5.3, judged=13)
# VisualPRM, table 1 and section 3: 127 words and 5.6 steps a solution, at 1.5 tokens a word; a critique of a step in
# three fields as GenPRM's shorter ones
REAL = Text(question=100, solution=190, n_steps=5.6, judged=120)
IMAGE_BYTES = {True: 2_700, False: 100_000}  # of a stored image, in the world (results/tiny) and elsewhere (MM-K12)
BENCHMARK_ROWS = 2_866  # of VisualProcessBench, 9.4 steps each (VisualPRM, table 1)
TEACHER_TOKENS = 900  # that a teacher reads of a question and an image, besides the solution: an assumption
RECORD_BYTES, TOKEN_BYTES = 200, 6  # of a solution or label on disk (results/tiny)
# of a tree search: rollouts for each path that is kept (results/ablations/12: 31; MM-PRM, section 3.2, some 40: 747,000
# labels of 10,000 problems, 3 on a path)
ROLLOUTS_A_PATH = 40
Run = Mapping[str, Mapping[str, Any]]  # notebook -> its parameters, of the run that a notebook reads, itself included


class Work(NamedTuple):
    """Tokens that are generated, read in forward passes, and trained on (each pass counts); requests to a teacher;
    records, and bytes of them, that are kept.
    """

    written: float = 0.0
    read: float = 0.0
    trained: float = 0.0
    calls: float = 0.0
    records: float = 0.0
    n_bytes: float = 0.0


def text_of(run: Run) -> Text:
    """The lengths to expect: those of the embedded world, or of real data where 01 takes its problems elsewhere."""
    return WORLD if run.get("01_data", {}).get("source", "world") == "world" else REAL


def n_labelled(run: Run) -> tuple[int, int]:
    """(train, dev): how many problems 03 labels, which are those that 01 has and 02 does not train on."""
    sizes, asked = run.get("01_data", {}), run.get("03_mc_labeling", {})
    taken = run.get("02_policy", {}).get("n_sft", 0) if asked.get("policy", "").startswith("02_") else 0
    left = max(0, sizes.get("n_train", 10**9) - taken)
    return min(asked.get("n_label_problems", 0), left), min(asked.get("n_label_dev", 0), sizes.get("n_dev", 10**9))


def rollouts_of_tree(search: Mapping[str, Any], text: Text) -> int:
    """The rollouts that the search of a problem may take: its budget, or what its searches ask for, if that is less.

    `search` are fields of `omegaprm.Options`. A problem that is always or never solved takes n_rollouts alone.
    """
    n, halvings = search.get("n_rollouts", 16), math.ceil(math.log2(text.n_steps + 1))
    return min(search.get("max_rollouts", 1000), n * (1 + search.get("max_searches", 200) * halvings))


def n_solutions(run: Run) -> float:
    """How many labelled solutions 03 has of a problem: those that it samples, or the kept paths of a tree."""
    asked = run.get("03_mc_labeling", {})
    if asked.get("strategy") != "omegaprm":
        return asked.get("n_solutions", 1)
    return max(1.0, rollouts_of_tree(_search(asked), text_of(run)) / ROLLOUTS_A_PATH)


def _search(p: Mapping[str, Any]) -> dict[str, Any]:
    return {"n_rollouts": p["n_rollouts"], **p.get("search", {})}


def root(where: str, run: Run) -> str:
    """The base model that a model of `where` was made from: an output of 02, 04 or 07 is as large as what it began as.

    ValueError where the notebook that makes it is not known.
    """
    found = re.match(r"(?:results/.+/)?(\d\d_[a-z_]+)(/|$)", where)
    if not found:
        return where
    made = run.get(found[1])
    if made is None or "model" not in made:
        raise ValueError(f"{where}: the parameters of {found[1]} are not known, so that its size is not")
    if found[1] == "04_prm_training" and made["init"] == "policy":
        return root("02_policy/policy", run)
    return root(made["policy"], run) if made["model"] == made.get("policy") else made["model"]


def _solution(run: Run, params: Mapping[str, Any]) -> float:
    return min(text_of(run).solution, params.get("max_new_tokens", 10**9))


def rollout_tokens(text: Text, n_rollouts: int, last_step: str) -> float:
    """Tokens of the rollouts of one solution: from each step but the last, on average half of a solution is left.

    With "rollout" the last step is continued, too, which ends at once.
    """
    n = max(0.0, text.n_steps - 1)
    return n_rollouts * (n * text.solution / 2 + (1 if last_step == "rollout" else 0))


def settings(name: str, run: Run) -> dict[str, Any]:
    """The parameters of a notebook, with those that it has in `trainer` and `training` beside the others."""
    return {**run[name], **run[name].get("training", {}), **run[name].get("trainer", {})}


def work(name: str, run: Run, image: int) -> Work:
    """What a notebook does, where an image takes `image` tokens; ValueError for one that nobody has counted."""
    if name not in WORK:
        raise ValueError(f"{name}: no estimate for this notebook; {', '.join(WORK)} are known")
    text = text_of(run)
    found = WORK[name](settings(name, run), run, text, image + text.question)
    return found._replace(n_bytes=found.n_bytes + found.records * (RECORD_BYTES + TOKEN_BYTES * text.solution))


def _data(p, run, text, prompt) -> Work:
    n = p["n_train"] + p["n_dev"] + p["n_test"]
    return Work(n_bytes=n * (IMAGE_BYTES[p["source"] == "world"] + 1_000))


def _policy(p, run, text, prompt) -> Work:
    n_pairs = p["n_sft"] * (1 if p["solutions_path"] else p["per_problem"])
    n_test = min(p["n_eval"], run.get("01_data", {}).get("n_test", 10**9))
    n = n_test * (p["n_samples"] + 1) + min(p["n_base"], n_test)
    row = text.solution + prompt / p["pack_size"]
    return Work(n * _solution(run, p), n_test * 3 * prompt, n_pairs * row * p["epochs"], records=n)


def _labels(p, run, text, prompt) -> Work:
    n = sum(n_labelled({**run, "03_mc_labeling": p}))
    if p.get("strategy") == "omegaprm":
        return _trees(p, run, text, prompt, n)
    each = text._replace(solution=_solution(run, p), n_steps=min(text.n_steps, p["max_steps"]))
    rollouts = rollout_tokens(each, p["n_rollouts"], p["last_step"])
    written = n * p["n_solutions"] * (each.solution + rollouts)
    starts = n * (1 + p["n_solutions"] * text.n_steps)  # prompts with their prefixes
    return Work(written, starts * (prompt + each.solution / 2), records=2 * n * p["n_solutions"])


def _trees(p, run, text, prompt, n) -> Work:
    """Of n trees; a rollout goes on from somewhere in a solution, and stays in the file."""
    rollouts, half = n * rollouts_of_tree(_search(p), text), _solution(run, p) / 2
    kept = n * n_solutions({**run, "03_mc_labeling": p})
    return Work(rollouts * half, rollouts / p["n_rollouts"] * (prompt + half), records=2 * kept,
                n_bytes=rollouts * half * TOKEN_BYTES)  # fmt: skip


def _prms(p, run, text, prompt) -> Work:
    train, dev = (n * n_solutions(run) for n in n_labelled(run))
    passes = sum(p["epochs"][name] for name in p["prms"])
    row = text.solution + prompt / p["pack_size"]
    whole = text.solution + prompt
    # every epoch is validated, then the best is scored, loaded and scored again; the judge once
    scored = dev * whole * sum(max(1, p["epochs"][name]) + 1 for name in p["prms"]) + dev * whole * 2
    return Work(0, scored, passes * train * row, records=dev * len(p["prms"]))


def _benchmark(p, run, text, prompt) -> Work:
    if p["benchmark_path"]:
        n, written = BENCHMARK_ROWS, 0.0
    else:
        n_problems = min(p["n_problems"], run.get("01_data", {}).get("n_test", 10**9)) * p["n_per_writer"]
        n, written = n_problems * (len(p["temperatures"]) + len(p["slips"])), n_problems * len(p["temperatures"])
    again = min(2 * p["n_history"] * 4, n) * text.n_steps if "chat" in p["prms"] else 0
    scored = (n * len(p["prms"]) + again) * (text.solution + prompt)
    return Work(written * _solution(run, p), scored, records=n * len(p["prms"]))


def _choosing(p, run, text, prompt) -> Work:
    n_problems = min(p["n_problems"], run.get("01_data", {}).get("n_test", 10**9))
    n = n_problems * (p["n_candidates"] + 1)
    whole = _solution(run, p) + prompt
    return Work(n * _solution(run, p), 2 * n_problems * prompt + n * whole * len(p["prms"]),
                    records=n * (1 + len(p["prms"])))  # fmt: skip


def _critic(p, run, text, prompt) -> Work:
    told = n_labelled(run)[0] * n_solutions(run)
    learnt = min(p["n_train"], told)
    critique, whole = text.judged * text.n_steps, text.solution + prompt
    bench = run.get("05_visualprocessbench", {})
    per_problem = 1 if bench.get("benchmark_path") else 4
    judged = min(p["n_problems"] * per_problem, BENCHMARK_ROWS if bench.get("benchmark_path") else 10**9)
    forms, votes = len(p["epochs"]), p["n_votes"] if p["n_votes"] > 1 else 0
    # half of a critique is left out where one reading stops at the first error
    tries = learnt * p["wrong_share"] * p["n_tries"] * text.solution / 2
    written = judged * critique * (1.5 * forms + votes) + tries * ("noise" not in p["teacher"])
    asked = "base_url" in p["teacher"]
    return Work(written, (judged * (2 * forms + votes) + learnt) * whole,
                    sum(p["epochs"].values()) * learnt * (whole + critique), calls=told * asked,
                    records=learnt + judged * forms * 2)  # fmt: skip


def _refined(p, run, text, prompt) -> Work:
    n_problems = min(p["n_problems"], run.get("01_data", {}).get("n_test", 10**9))
    half = max(p["ns"]) // 2
    initial = n_problems * half
    made = initial * len([m for m in p["modes"] if m != "fresh"])
    sampled = 0 if p["candidates"] else 2 * initial
    judged, critique = 2 * initial + made / 2, text.judged * text.n_steps  # the same continuation is judged once
    written = (sampled + made / 4) * _solution(run, p) + judged * critique
    return Work(written, (judged + made) * (prompt + text.solution), records=judged + made)


def _reader(p, run, text, prompt) -> Work:
    return Work()


def _cost(p, run, text, prompt) -> Work:
    n, fresh = p["n_problems"] * p["n_solutions"], n_labelled(run)[0] or p["n_problems"]
    rolls = sum(rollout_tokens(text, k, "verdict") for k in (max(p["ks"]), p["usual_k"] / 4, p["usual_k"] / 2))
    trees = p["n_trees"] * rollouts_of_tree(p["omegaprm"], text) * text.solution / 2
    written = n * rolls * len(p["seeds"]) + trees * len(p["seeds"]) + fresh * p["n_solutions"] * text.solution
    written += n * text.n_steps * p["n_reference"] * text.solution / 2
    bought = p["budget_problems"] * p["n_solutions"] * rollout_tokens(text, p["usual_k"], "verdict")
    n_prms = (len(p["trained"]) + len(p["selections"])) * len(p["seeds"])
    trained = n_prms * p["n_updates"] * p["batch_size"] * (text.solution + prompt / p["n_solutions"])
    written += bought * len(p["trained"]) * len(p["seeds"])
    return Work(written, written / 2 + n_prms * BENCHMARK_ROWS / 2 * (text.solution + prompt), trained, records=n)


def _point(p, run, text, prompt) -> Work:
    rows = p["n_updates"] * p["batch_size"] * p["gradient_accumulation"]
    scored = BENCHMARK_ROWS + p["n_choosing"] * p["n_candidates"]
    whole = text.solution + prompt
    return Work(0, scored * whole, rows * (text.solution + prompt / p["pack_size"]))


WORK: dict[str, Callable[[Mapping[str, Any], Run, Text, float], Work]] = {
    "01_data": _data, "02_policy": _policy, "03_mc_labeling": _labels, "04_prm_training": _prms,
    "05_visualprocessbench": _benchmark, "06_best_of_n": _choosing, "07_generative_prm": _critic,
    "08_refined_best_of_n": _refined, "09_soft_labels": _reader, "10_learning_rate": _reader,
    "11_path_diversity": _reader, "12_labeling_cost": _cost, "point_prm": _point,
}  # fmt: skip
