"""What every module of the library must keep to; static, nothing is run."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from mmprm_lib import provenance
from tests.conftest import REPOSITORY

MODULES = sorted((REPOSITORY / "mmprm_lib").rglob("*.py"))
FLOORS = [
    {"schema", "fingerprints", "parameters", "provenance", "run", "runner", "stages", "verify", "sweep", "cleaning"}
    | {"stats", "sequential", "workload", "estimates"},
    {"world", "answers", "mathcheck", "quantities", "units", "extraction", "wording", "grading", "steps"}
    | {"answer_survey"},
    {"data", "registry", "contamination", "fields", "images", "rows", "splits", "models", "architecture", "curriculum",
     "pretrain", "convert", "convert_config", "convert_tokens", "untrusted"},
    {"generation", "decoding", "choices", "prompts", "rollouts", "endpoint", "protocol", "served", "engine", "outcomes"}
    | {"guards", "labeling_files", "engines", "fleet", "pieces", "machines", "threads"},
    {"adaptive", "omegaprm", "trees", "labeling", "label_quality"}
    | {"interchange", "interchange_text", "label_selection", "policy", "policy_errors", "prm", "training", "packing"}
    | {"launch", "checkpoints"}
    | {"foreign", "interchange_mm_prm", "interchange_records", "interchange_text", "interchange_visualprm"}
    | {"encoding", "objective", "scoring", "critique", "teachers", "critic", "critic_training", "released"},
    {"selection", "refinement", "pools", "benchmark", "comparison", "evaluation", "validation", "labeling_cost"}
    | {"labeling_value", "critique_quality", "refined_pairs", "ablation", "points", "aggregates"}
    | {"modelcheck", "dryrun"},
    {"plots", "plots_prm", "plots_evaluation", "plots_cost", "plots_critique", "plots_ablation", "drawing"},
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
PICKLES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

every_module = pytest.mark.parametrize(
    "path", MODULES, ids=lambda p: p.relative_to(REPOSITORY / "mmprm_lib").as_posix()
)


def top(path: Path) -> str:
    """The name of a module, or of the subpackage that it lies in."""
    return path.relative_to(REPOSITORY / "mmprm_lib").with_suffix("").parts[0]


def needs(path: Path) -> set[str]:
    """The modules that a module needs, itself or through others."""
    names = provenance.library_hashes(path.read_text(encoding="utf-8"), REPOSITORY / "mmprm_lib")
    return {Path(name).with_suffix("").parts[0] for name in names} - {"assets", "__init__"}


@every_module
def test_imports_run_one_way(path):
    if top(path) in FLOOR:
        above = {name for name in needs(path) if FLOOR.get(name, 0) > FLOOR[top(path)]}
        assert not above, f"{top(path)} needs {above}, which stand above it"


def test_no_module_needs_itself():
    inner = {path: needs(path) for path in MODULES if path.parent == REPOSITORY / "mmprm_lib"}
    assert [path.stem for path, names in inner.items() if path.stem in names] == []


@every_module
def test_a_module_is_read_in_one_sitting(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 350, f"{len(lines)} lines"
    assert max(map(len, lines), default=0) <= 120, [n for n, line in enumerate(lines, 1) if len(line) > 120]


@every_module
def test_functions_are_short_typed_and_described(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module says not what it is"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body  # neither signature nor docstring
            length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert length <= 40, f"{node.name} has {length} lines"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert node.returns is not None, f"{node.name} does not say what it returns"


@every_module
def test_no_error_is_swallowed(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: a bare except"
            broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            inside = [inner for statement in node.body for inner in ast.walk(statement)]
            told = any(isinstance(inner, ast.Name) and inner.id == node.name for inner in inside)
            raised = any(isinstance(inner, ast.Raise) for inner in inside)
            assert not broad or told or raised, f"line {node.lineno}: an error of any kind is dropped"


@every_module
def test_nothing_read_from_a_file_is_executed(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names} | {
                (getattr(node, "module", "") or "").split(".")[0]
            }
            assert not names & PICKLES, f"line {node.lineno}: {names & PICKLES}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "compile", "yaml.load", "yaml.unsafe_load"), (
                f"line {node.lineno}: {called}"
            )
            unsafe = called in ("torch.load", "np.load") and not any(k.arg == "weights_only" for k in node.keywords)
            assert not (called == "torch.load" and unsafe), f"line {node.lineno}: torch.load without weights_only"
            allowed = [k for k in node.keywords if k.arg in ("allow_pickle", "trust_remote_code")]
            assert not any(getattr(k.value, "value", None) is True for k in allowed), (
                f"line {node.lineno}: runs foreign code"
            )


@every_module
def test_there_is_no_smoke_mode_and_no_machine_path(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert node.value != "smoke", f"line {node.lineno}: the parameters differ, never the code"
            assert not node.value.startswith(("/home/", "/root/", "/work/", "/Users/")), (
                f"line {node.lineno}: {node.value}"
            )
            spoilt = node.value.strip() and {"\b", "\f", "\a", "\v"} & set(node.value.strip("\a\b\f\v"))
            assert not spoilt, f"line {node.lineno}: a control character in a text; the r of r'' is missing"


def test_the_linter_has_nothing_to_say():
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "."]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
