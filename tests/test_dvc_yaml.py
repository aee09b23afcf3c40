"""The import graph is the cache-invalidation graph: `deps` and `params` name all that matters.

Left out are the modules that cannot change what a stage computes: L0 (it declares and validates),
progress, the stage's frame, and the hardware's description.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bitrank import composition

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "bitrank"
COMPUTES_NOTHING = {
    "errors", "schema", "pins", "data_config", "config", "paths", "records", "artifacts",
    "progress", "hardware", "devices", "stage", "tuning", "processes", "adapter_config",
}  # fmt: skip
TRACKING = "record"
"""The one stage that computes nothing: it is to run when a record changed, not when code did."""
STAGES: dict[str, dict[str, Any]] = {
    name: stage
    for file in ("dvc.yaml", "stages/dvc.yaml")
    for name, stage in yaml.safe_load((ROOT / file).read_text())["stages"].items()
}


def script_of(stage: str) -> Path:
    match = re.search(r"stages/\w+\.py", STAGES[stage]["cmd"])
    assert match is not None
    return ROOT / match.group()


def module_file(name: str) -> Path:
    file = SOURCE / f"{name.replace('.', '/')}.py"
    return file if file.is_file() else SOURCE / name.replace(".", "/") / "__init__.py"


def imported(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "bitrank":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bitrank."):
            found.add(str(node.module).removeprefix("bitrank."))
        elif isinstance(node, ast.Import):
            assert not [a for a in node.names if a.name.startswith("bitrank")], file
    return found


def closure(files: list[Path]) -> set[str]:
    seen: set[str] = set()
    waiting = {name for file in files for name in imported(file)}
    while waiting:
        name = waiting.pop()
        if name not in seen and name not in COMPUTES_NOTHING:
            seen.add(name)
            waiting |= imported(module_file(name))
    return seen


def dynamic_modules(stage: str) -> list[Path]:
    """All modules that a `${...kind}` dependency can stand for."""
    patterns = [d for d in STAGES[stage]["deps"] if d.startswith("src/") and "${" in d]
    return [f for p in patterns for f in ROOT.glob(re.sub(r"\$\{.*?\}", "*", p))
            if f.name != "__init__.py"]  # fmt: skip


@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"hardware", TRACKING}))
def test_deps_are_the_transitive_imports_of_the_script(stage: str) -> None:
    named = {d for d in STAGES[stage]["deps"] if d.startswith("src/") and d.endswith(".py")}
    named = {d for d in named if "${" not in d}
    needed = closure([script_of(stage), *dynamic_modules(stage)])
    assert named == {module_file(n).relative_to(ROOT).as_posix() for n in needed}
    assert script_of(stage).relative_to(ROOT).as_posix() in STAGES[stage]["deps"]


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_params_are_what_the_script_reads(stage: str) -> None:
    """A section, or one value of it: `run.data.max_sequence_tokens`."""
    read = set(re.findall(r"\brun\.([\w.]+)", script_of(stage).read_text()))
    params = STAGES[stage].get("params", [])
    if stage == TRACKING:
        assert params == [{"params.yaml": None}], "what is published names the whole configuration"
    else:
        assert set(params) == read


@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"hardware", "report", TRACKING}))
def test_computing_stages_depend_on_the_numeric_stack(stage: str) -> None:
    assert "constraints-numeric.txt" in STAGES[stage]["deps"]


def test_templates_that_a_stage_renders_are_its_deps() -> None:
    for stage, module in (("report", "pages"), ("prepare", "audit_page")):
        used = set(re.findall(r'"([\w.]+\.(?:jinja|css))"', module_file(module).read_text()))
        assert used
        for template in used:
            assert f"src/bitrank/templates/{template}" in STAGES[stage]["deps"], (stage, template)


def test_no_command_carries_a_path_of_a_machine_or_a_name_of_a_point() -> None:
    for stage in STAGES.values():
        assert re.fullmatch(
            r"env PYTHONPATH=src( HF_HUB_OFFLINE=1)? python stages/\w+\.py( \$\{item\.subject\})?",
            stage["cmd"],
        )


def test_scripts_stay_thin() -> None:
    for script in (ROOT / "stages").glob("*.py"):
        tree = ast.parse(script.read_text())
        assert len(script.read_text().splitlines()) <= 45, script
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.For | ast.While)], script


def test_the_committed_params_are_the_default_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed, not what lies in the work tree: a user's changed params.yaml is legal."""
    import subprocess

    answer = subprocess.run(["git", "show", "HEAD:params.yaml"], cwd=ROOT, capture_output=True,
                            text=True)  # fmt: skip
    if answer.returncode == 0:
        assert answer.stdout == composition.compose_text([], ROOT / "conf")
    else:  # an archive without git: the file is as it was released
        assert (ROOT / "params.yaml").read_text() == composition.compose_text([], ROOT / "conf")


def test_modules_and_functions_keep_their_size() -> None:
    for file in [*SOURCE.rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        assert len(file.read_text().splitlines()) <= 300, file
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= 50, f"{file}: {node.name} has {length} lines"
