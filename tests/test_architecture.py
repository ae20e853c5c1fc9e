"""The rules of the house that a machine can check."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

import replaycad
from replaycad.cli.commands import app

PACKAGE = Path(replaycad.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}

NETWORKS = {"diffusion", "segmentation", "detectors"}
PURE = {"metrics", "anomaly", "mask_ops", "config", "progress", "runtime", "distributed",
        "torch_files"}  # fmt: skip
# From the ground up; a file imports its own layer or one below, never one above.
LAYERS = [
    {"errors"},
    PURE,
    {"artifacts"},
    NETWORKS | {"continual", "data"},
    {"stages"},
    {"engine", "inference", "textual_inversion", "audit", "fetch"},
    {"experiments"},
    {"report", "guide"},
    {"cli"},
]
FORBIDDEN_NAMES = {"utils", "common", "helpers", "base", "core", "misc", "types"}
TORCH_FREE = [
    "errors", "config.recipes", "config.stages", "config.paper_classes", "progress",
    "engine.staleness",
    "engine.builder", "experiments.plan", "experiments.strategies", "cli.commands", "cli.tools",
    "cli.calibrate", "cli.console", "cli.feedback", "cli.options", "cli.session", "data.samples",
    "data.classes", "diffusion.presets", "diffusion.memory", "segmentation.presets",
    "detectors.registry", "detectors.settings", "detectors.encoder_files", "fetch.parts",
    "fetch.transfer", "fetch.hub", "fetch.work",
    *(f"detectors.{path.parent.name}.preset" for path in PACKAGE.glob("detectors/*/preset.py")),
]  # fmt: skip
MAX_OPTIONS = 17
SHARED_OPTIONS = {
    "--class", "--data", "--store", "--device", "--seed", "--force", "--json", "--quiet",
    "--dry-run", "--recipe", "--set",
}  # fmt: skip
OPTIONS = {
    "mask": SHARED_OPTIONS | {"--segmenter", "--tile"},
    "compress": SHARED_OPTIONS | {"--keep", "--budget", "--backbone", "--tile", "--image-size"}
    | {"--add"},
    "replay": (SHARED_OPTIONS - {"--data"}) | {"--num", "--backbone", "--batch-size"},
    "train": SHARED_OPTIONS | {"--past", "--detector", "--encoder", "--tile", "--name"},
    "eval": SHARED_OPTIONS | {"--encoder", "--name"},
    "run": (SHARED_OPTIONS - {"--seed", "--force"})
    | {"--strategy", "--detector", "--budget", "--orders", "--seeds", "--name", "--tile"},
    "predict": {"--name", "--class", "--out", "--watch", "--batch-size", "--encoder", "--store"}
    | {"--device", "--exit-code", "--contours", "--json", "--quiet"},
    "calibrate": {"--class", "--name", "--target-false-alarms", "--encoder", "--store"}
    | {"--device", "--dry-run", "--json", "--quiet"},
    "feedback": {"--class", "--good", "--defective", "--undo", "--max-false-alarms", "--name"}
    | {"--encoder", "--store", "--device", "--dry-run", "--json", "--quiet"},
    "report": {"--name", "--out", "--data", "--store", "--encoder", "--device", "--json"},
    "export": {"--class", "--token", "--name", "--format", "--encoder", "--out", "--store"}
    | {"--json"},
    "import": {"--class", "--backbone", "--store", "--force", "--json"},
    "inspect": {"--verify", "--audit", "--lacks", "--data", "--json"},
    "forget": {"--remove-detectors", "--store", "--dry-run", "--json", "--quiet"},
    "fetch": {"--recipe", "--class", "--data", "--backbone", "--segmenter", "--encoder"}
    | {"--detector", "--from", "--dry-run", "--json", "--quiet"},
    "doctor": {"--data", "--json", "--quick", "--sheet"},
    "help": {"--json"},
}


def room(module: str) -> str:
    """`replaycad.diffusion.search` -> `diffusion`."""
    return module.split(".")[1] if "." in module else module


def module_name(path: Path) -> str:
    """Dotted name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    known = {module_name(other) for other in FILES}
    return {name for name in found if name in known and name != "replaycad"}


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(TREES[path]) if isinstance(node, kinds)]


def layer(name: str) -> int | None:
    """Height of a module; None for the pre-training, which stands outside the tower."""
    return next((index for index, rooms in enumerate(LAYERS) if room(name) in rooms), None)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_never_point_upward(path):
    own = layer(module_name(path))
    if own is None:
        assert module_name(path) == "replaycad" or room(module_name(path)) in {"mini", "__main__"}
        return

    above = {name for name in imports(path) if (layer(name) or 0) > own}

    assert not above


def test_the_program_does_without_what_the_wheel_leaves_out():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    left_out = tuple(
        pattern.removesuffix("*")
        for pattern in project["tool"]["setuptools"]["packages"]["find"]["exclude"]
    )
    assert [name for name in map(module_name, FILES) if name.startswith(left_out)]
    for path in FILES:
        if not module_name(path).startswith(left_out):
            assert not [name for name in imports(path) if name.startswith(left_out)], path


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_stages_do_not_import_each_other_and_networks_know_no_files(path):
    name = module_name(path)
    rooms = {room(other) for other in imports(path)}

    if room(name) == "stages":
        assert not {other for other in imports(path) if room(other) == "stages"} - {
            "replaycad.stages"
        }
    if room(name) in NETWORKS:
        assert not rooms & {"data", "artifacts"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_and_functions_stay_small_and_well_named(path):
    assert path.stem not in FORBIDDEN_NAMES
    assert len(path.read_text().splitlines()) <= 400
    for function in functions(path):
        assert function.end_lineno - function.lineno < 80, function.name


def test_the_top_level_holds_few_modules():
    assert len(list(PACKAGE.glob("*.py"))) <= 12


def test_nine_in_ten_functions_have_at_most_forty_lines():
    sizes = sorted(f.end_lineno - f.lineno + 1 for path in FILES for f in functions(path))

    assert sizes[int(0.9 * len(sizes))] <= 40


def test_command_bodies_are_thin():
    for function in functions(PACKAGE / "cli" / "commands.py"):
        body = [node for node in function.body if not isinstance(node, ast.Expr)]
        if body:
            assert body[-1].end_lineno - body[0].lineno < 30, function.name


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_forbidden_constructs(path):
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "eval", "exec"}, node.lineno
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            assert caught not in {"everything", "Exception", "BaseException"}, node.lineno
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "dill", "joblib", "shelve"} & set(names), node.lineno


CHANGING = {
    "add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem",
    "popleft", "remove", "reverse", "setdefault", "sort", "update", "__setitem__",
}  # fmt: skip


def changed_names(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Names that a function rebinds outside itself, or whose content it changes."""
    rebound, changed, own = set(), set(), set()
    for node in ast.walk(function):
        if isinstance(node, ast.Global):
            rebound |= set(node.names)
        elif isinstance(node, ast.arg):
            own.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif (isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del)) or (
            isinstance(node, ast.Attribute) and node.attr in CHANGING
        ):
            changed.add(ast.unparse(node.value))
    return (changed - own) | rebound


def module_names(tree: ast.Module) -> set[str]:
    """Names that a file binds at its top, other than by importing and defining."""
    assigned = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    return {
        name.id for node in assigned for name in ast.walk(node)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    }  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_function_changes_what_its_module_holds(path):
    changed = {name for function in functions(path) for name in changed_names(function)}

    assert changed & module_names(TREES[path]) == set()


@pytest.mark.parametrize(
    "body",
    ["KNOWN[1] = 2", "del KNOWN[1]", "KNOWN[1] += 2", "KNOWN.update(a=1)", "KNOWN.append(1)",
     "global KNOWN\n    KNOWN = {}"],
)  # fmt: skip
def test_module_state_is_seen_however_it_is_changed(body):
    (function,) = ast.parse(f"def f():\n    {body}").body

    assert changed_names(function) == {"KNOWN"}
    own = ast.parse(f"def f():\n    KNOWN = {{}}\n    {body.split(chr(10))[0]}").body[0]
    assert changed_names(own) == ({"KNOWN"} if "global" in body else set())


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_public_functions_are_typed_and_documented(path):
    assert ast.get_docstring(TREES[path]), "the first line says the file's one idea"
    for function in functions(path):
        if function.name.startswith("_"):
            continue
        is_report = function.name == "step"  # figures of any name are what a report is for
        assert is_report or function.args.kwarg is None, f"**kwargs in {function.name}"
        signature = ast.unparse(function.args) + (
            ast.unparse(function.returns) if function.returns else ""
        )
        if re.search(r"\bTensor\b", signature) and is_public(path, function):
            text = (ast.get_docstring(function) or "") + class_text(path, function)
            assert re.search(r"\[[\w', .*+/-]+\]", text), f"no shape in {function.name}"


def class_text(path: Path, function: ast.FunctionDef) -> str:
    """What the class of a method says, where shapes common to its methods may stand."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ClassDef) and function in node.body:
            return ast.get_docstring(node) or ""
    return ""


def is_public(path: Path, function: ast.FunctionDef) -> bool:
    """Reachable by name from outside: not inside another function, nor in a private class."""
    for node in ast.walk(TREES[path]):
        is_other = isinstance(node, ast.FunctionDef) and node is not function
        if is_other and any(function is inner for inner in ast.walk(node)):
            return False
        if isinstance(node, ast.ClassDef) and node.name.startswith("_") and function in node.body:
            return False
    return True


def test_options_of_every_command_are_frozen():
    found = {
        name: {
            option
            for parameter in command.params
            for option in parameter.opts
            if option.startswith("--") and option not in ("--help",)
        }
        for name, command in get_command(app).commands.items()
    }

    assert found == OPTIONS


def test_no_command_has_more_options_than_a_reader_takes_in():
    assert {name for name, options in OPTIONS.items() if len(options) > MAX_OPTIONS} == set()


def test_every_command_has_help_with_an_example():
    for name, command in get_command(app).commands.items():
        assert f"replaycad {name}" in command.help, name
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.name}"


def test_light_modules_do_not_import_heavy_ones_at_their_top():
    heavy = {"torch", "torchvision", "diffusers", "transformers", "timm", "segment_anything"}
    for name in TORCH_FREE:
        path = PACKAGE / (name.replace(".", "/") + ".py")
        for node in TREES[path].body:
            if isinstance(node, ast.Import):
                assert not heavy & {alias.name.split(".")[0] for alias in node.names}, name
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in heavy, name
                assert node.module != "replaycad.runtime", name
