"""The rooms of ``kd/`` and who may import whom: the table of the design, read off the imports."""

import ast
from itertools import product

from tests.support.paths import ROOT

KD = ROOT / "kd"
GROUND = {"config", "errors", "limits", "text"}
BASE = GROUND | {"system"}
MAY_IMPORT = {
    **{name: GROUND for name in GROUND},
    "system": {"errors"},
    "data": BASE,
    "models": BASE,
    "runs": BASE | {"data.library.store"},
    "evaluation": BASE | {"data", "models", "runs"},
    "training": BASE | {"data", "models", "runs", "evaluation"},
    "export": BASE | {"data", "models", "runs", "evaluation"},
    "distill": BASE | {"data", "models", "runs", "evaluation", "training", "export"},
    "experiments": BASE | {"runs", "data", "evaluation"},
    "ui": BASE | {"data", "models", "runs", "evaluation", "training", "export", "distill", "experiments"},
}
# Imported on a ZeroGPU Space only, whose package ``spaces`` brings torch into the page's process.
HAS_TORCH = {"ui.zerogpu"}
ANYTHING = {"devtools", "cli", "__main__", "__init__"}


def modules() -> dict[str, str]:
    """Dotted name without ``kd.`` -> source."""
    return {
        ".".join(path.relative_to(KD).with_suffix("").parts).removesuffix(".__init__"): path.read_text()
        for path in KD.rglob("*.py")
    }


def imported(source: str) -> set[str]:
    """The modules that a source imports, anywhere in it, as dotted names; of ours without ``kd.``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def arrows() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports."""
    every = modules()

    def ours(name: str) -> str | None:
        parts = name.split(".")[1:]
        return next((m for m in (".".join(parts[:n]) for n in range(len(parts), 0, -1)) if m in every), None)

    return {
        name: {found for one in imported(source) if one.startswith("kd.") and (found := ours(one))} - {name}
        for name, source in every.items()
    }


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_module_is_in_a_room_of_the_design():
    assert {room(name) for name in modules()} == set(MAY_IMPORT) | ANYTHING


def test_a_room_imports_only_what_the_table_allows():
    for name, wanted in arrows().items():
        for other in wanted:
            allowed = room(name) in ANYTHING or room(other) == room(name)
            allowed = allowed or bool({room(other), other} & MAY_IMPORT[room(name)])
            assert allowed, f"kd.{name} imports kd.{other}"


def test_no_two_modules_import_each_other():
    found = arrows()
    reached = {name: set(others) for name, others in found.items()}
    for middle, start in product(found, found):
        if middle in reached[start]:
            reached[start] |= reached[middle]
    assert [name for name, others in reached.items() if name in others] == []


def test_only_the_page_imports_gradio_and_it_never_imports_torch():
    for name, source in modules().items():
        packages = {one.split(".")[0] for one in imported(source)}
        assert room(name) == "ui" or "gradio" not in packages, name
        assert room(name) != "ui" or "torch" not in packages or name in HAS_TORCH, name
        assert "spaces" not in packages or name in HAS_TORCH, name


def test_what_brings_torch_into_the_page_is_imported_inside_functions_only():
    for name, source in modules().items():
        whole = ast.parse(source)
        whole.body = [node for node in whole.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not {f"kd.{one}" for one in HAS_TORCH} & imported(ast.unparse(whole)), name


def test_the_plan_is_made_without_torch():
    packages = {one.split(".")[0] for one in imported(modules()["training.plan"])}
    assert packages.isdisjoint({"torch", "transformers"})


def test_the_packages_own_init_files_are_empty():
    for path in KD.glob("*/**/__init__.py"):
        assert not path.read_text().strip(), path
