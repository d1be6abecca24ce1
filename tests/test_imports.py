"""Imports run one way, and serving loads neither torch nor transformers (see CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("sparsecbm", "export", "serving", "loadtests")
SERVING_MAY_IMPORT = {"sparsecbm", "sparsecbm.bundle", "sparsecbm.errors", "sparsecbm.rows", "sparsecbm.tokens"}
# Inside a function, for a trusted TorchScript bundle; that nothing else loads torch is tested below.
SERVING_MAY_IMPORT_LATE = {"sparsecbm.torchscript"}


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def module(path: Path) -> str:
    """Dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere: of ``from a import b``, ``a`` and, if a module, ``a.b``."""
    package = module(path) if path.name == "__init__.py" else module(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*above, origin] if origin else above)
            yield origin
            folder = ROOT.joinpath(*origin.split("."))
            for alias in node.names:
                if (folder / f"{alias.name}.py").exists() or (folder / alias.name).is_dir():
                    yield f"{origin}.{alias.name}"


def is_in(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


@pytest.mark.parametrize(
    ("room", "others"),
    [
        ("sparsecbm", ("export", "serving", "loadtests")),
        ("export", ("serving", "loadtests")),
        ("serving", ("export", "loadtests")),
    ],
)
def test_a_room_imports_only_what_comes_before_it(room: str, others: tuple[str, ...]) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(room)
        for name in imported(path)
        if any(is_in(name, other) for other in others)
    ]
    assert wrong == []


def test_serving_imports_only_the_part_of_sparsecbm_without_torch() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources("serving")
        for name in imported(path)
        if is_in(name, "sparsecbm") and name not in SERVING_MAY_IMPORT | SERVING_MAY_IMPORT_LATE
    ]
    assert wrong == []


# Parts of serving that only run where their extra is installed.
EXTRAS = {"serving/client": "client", "serving/tracing.py": "otel"}


def test_serving_imports_only_base_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = {normal(dependency) for dependency in project["dependencies"]}
    # What FastAPI and Ray Serve stand on and show in their own interfaces.
    base |= {"starlette", "uvicorn"}
    homes = packages_distributions()

    def allowed(path: Path) -> set[str]:
        extras = [extra for part, extra in EXTRAS.items() if path.is_relative_to(ROOT / part)]
        return base.union(*({normal(one) for one in project["optional-dependencies"][extra]} for extra in extras))

    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources("serving")
        for name in {name.partition(".")[0] for name in imported(path)}
        if name not in sys.stdlib_module_names
        and name not in ROOMS
        and not allowed(path) & {normal(home) for home in homes.get(name, [])}
    ]
    assert wrong == []


def normal(requirement: str) -> str:
    """Distribution name of a requirement, in one spelling."""
    name = requirement.split(";")[0]
    for mark in "[<>=!~ ":
        name = name.split(mark)[0]
    return name.lower().replace("_", "-").replace(".", "-")


def test_base_dependencies_bring_in_neither_torch_nor_transformers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting, seen = [normal(dependency) for dependency in project["dependencies"]], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = requires(name) or []
        except ModuleNotFoundError:  # for another platform
            continue
        waiting += [normal(requirement) for requirement in found if "extra ==" not in requirement]
    assert not seen & {"torch", "transformers"}


def test_importing_all_of_serving_loads_neither_torch_nor_transformers() -> None:
    # Alembic alone runs its env.py.
    names = [module(path) for path in sources("serving") if path.name not in ("__main__.py", "env.py")]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(*sorted({'torch', 'transformers', 'export'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", sorted(SERVING_MAY_IMPORT))
def test_a_part_that_serving_may_import_loads_no_torch(name: str) -> None:
    code = f"import sys, {name}; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "False\n"
