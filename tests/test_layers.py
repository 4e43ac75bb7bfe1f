"""The order of the modules: one imports only from those before it."""

import ast

from conftest import ROOT

ORDER = [
    "config", "limits", "lru", "imports", "memory", "runs", "visitors", "launch", "losses", "metrics", "verdict", "latency", "plots", "depthwise", "ema", "pictures", "archive", "layout", "decoder", "uploads", "intake", "hub", "data",
    "duplicates", "labels", "models", "targets", "trainer", "pace",
    "compare", "inference", "taught", "analysis", "check", "check_report", "export", "sample", "work", "training", "report", "distill", "estimate", "study", "sweep", "bench_rows", "bench", "bench_page", "load", "chaos",
    "cli_screen", "cli_options", "cli_pictures", "cli_proof", "cli_runs", "cli", "__main__",
]  # fmt: skip


def imports(path) -> set[str]:
    """The modules of ``kd`` that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "kd":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kd."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("kd.")}
    return found


def test_every_module_has_its_place():
    assert sorted(path.stem for path in (ROOT / "kd").glob("*.py")) == sorted([*ORDER, "__init__"])


def test_a_module_imports_only_from_those_before_it():
    for place, name in enumerate(ORDER):
        above = imports(ROOT / "kd" / f"{name}.py") - set(ORDER[:place])
        assert not above, f"kd/{name}.py imports {above}"


def test_nothing_in_the_core_imports_gradio():
    for path in (ROOT / "kd").glob("*.py"):
        modules = {
            alias.name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in ([ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else node.names)
        }
        assert "gradio" not in modules, path
