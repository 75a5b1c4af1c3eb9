"""Which keys a configuration may have: constructor signatures, read from the source files.

"The constructor's signature is the configuration schema", and a typo deserves its answer at once: importing torch and
Lightning to look a name up takes ten seconds, parsing the file that defines the class takes milliseconds. LightningCLI
checks everything again, types in full, when the classes are built.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

from experiments.errors import UsageError, nearest

UNKNOWN: Any = type("Unknown", (), {"__repr__": lambda self: "…"})()  # a default that is no literal, or no default


class Parameter(NamedTuple):
    """One constructor argument: its annotation (None: none) and its default (`UNKNOWN`: none, or no literal)."""

    annotation: ast.expr | None
    default: Any


@functools.cache
def signature(class_path: str) -> dict[str, Parameter]:
    """Constructor arguments of a class, `**kwargs` followed into its bases. Nothing of the class is imported.

    Raises:
        UsageError: If there is no such class.
    """
    file, node, module = _find_class(*class_path.rsplit(".", 1))
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    found = _parameters(init, _constants(_tree(file))) if init else {}
    if init is None or init.args.kwarg is not None:
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id != "object":
                inherited = _inherited(module, file, base.id)
                found = {**inherited, **found}
    return found


def _inherited(module: str, file: Path, name: str) -> dict[str, Parameter]:
    """Arguments of a base class named in `file`; none if it is defined where no source can be read."""
    try:
        target = _follow(module, file, name)
        return signature(".".join(target)) if target else {}
    except UsageError:
        return {}


def check(section: str, values: dict[str, Any], class_path: str) -> None:
    """Every key of `values` must be a constructor argument, every plainly typed value must fit its annotation.

    Raises:
        UsageError: Naming the key, with the nearest valid one or the expected type.
    """
    known = signature(class_path)
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"unknown key {section}.{key}: {nearest(key, known)}")
        annotation = known[key].annotation
        if annotation is not None and not _fits(value, annotation):
            listed = isinstance(value, (str, int, float)) and _fits([value], annotation)
            hint = f": write [{value}]" if listed else ""
            raise UsageError(f"{section}.{key} expects {ast.unparse(annotation)}, got {value!r}{hint}")


def as_words(values: dict[str, Any], class_path: str) -> dict[str, Any]:
    """The values with `true` and `false` as words where an argument is a list of words: YAML takes them for more.

    `--data.instances=[true]` means the level of that name.
    """

    def words(key: str, value: Any) -> Any:
        annotation = known[key].annotation if key in known else None
        if not isinstance(value, list) or annotation is None or ast.unparse(annotation) != "list[str]":
            return value
        return [str(item).lower() if isinstance(item, bool) else item for item in value]

    known = signature(class_path)
    return {key: words(key, value) for key, value in values.items()}


def differing(values: dict[str, Any], class_path: str) -> dict[str, Any]:
    """What of `values` differs from the constructor's defaults: the identity of a run.

    A default spelt out is the same run, and an argument added later, with the old behaviour as its default, keeps it.
    """
    known = signature(class_path)
    return {k: v for k, v in values.items() if k not in known or not _equal(v, known[k].default)}


def _equal(value: Any, default: Any) -> bool:
    plain = list(default) if isinstance(default, tuple) else default
    value = list(value) if isinstance(value, tuple) else value
    return type(plain) is not type(UNKNOWN) and value == plain and isinstance(value, bool) == isinstance(plain, bool)


def _parameters(init: ast.FunctionDef, constants: dict[str, Any]) -> dict[str, Parameter]:
    plain = init.args.posonlyargs + init.args.args
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(init.args.defaults)) + list(init.args.defaults)
    pairs = list(zip(plain, defaults, strict=True))[1:]  # without self
    pairs += list(zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True))
    return {argument.arg: Parameter(argument.annotation, _literal(default, constants)) for argument, default in pairs}


def _constants(tree: ast.Module) -> dict[str, Any]:
    """The literal constants of a module, which defaults may name."""
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = _literal(node.value, found)
    return found


def _literal(node: ast.expr | None, constants: dict[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return constants.get(node.id, UNKNOWN)
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("list", "tuple") and len(node.args) == 1:
        inner = _literal(node.args[0], constants)
        return inner if inner is UNKNOWN else {"list": list, "tuple": tuple}[ast.unparse(node.func)](inner)
    try:
        return UNKNOWN if node is None else ast.literal_eval(node)
    except ValueError:
        return UNKNOWN


def _fits(value: Any, annotation: ast.expr) -> bool:
    """Whether a YAML value can be meant by a type; True for every type this small reading does not know."""
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _fits(value, annotation.left) or _fits(value, annotation.right)
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return value is None
    if isinstance(annotation, ast.Subscript):
        outer = ast.unparse(annotation.value)
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if outer == "Optional":
            return value is None or _fits(value, inner[0])
        if outer == "Union":
            return any(_fits(value, choice) for choice in inner)
        if outer == "Literal":
            return value in [_literal(choice, {}) for choice in inner]
        if outer in ("list", "tuple", "Sequence", "List", "Tuple"):
            return isinstance(value, (list, tuple)) and all(_fits(v, inner[0]) for v in value)
        return True
    kinds: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool}
    kind = kinds.get(ast.unparse(annotation))
    if kind is None:
        return True
    return isinstance(value, kind) and (not isinstance(value, bool) or kind is bool)


def _find_class(module: str, name: str) -> tuple[Path, ast.ClassDef, str]:
    """The file, syntax node and module of a class, followed through re-exports."""
    for _ in range(10):  # a re-export chain is two or three links long
        file = _module_file(module)
        if file is None:
            break
        for node in ast.walk(_tree(file)):
            if isinstance(node, ast.ClassDef) and node.name == name:
                return file, node, module
        target = _follow(module, file, name)
        if target is None:
            break
        module, name = target
    raise UsageError(f"class_path {module}.{name}: there is no such class")


def _follow(module: str, file: Path, name: str) -> tuple[str, str] | None:
    """Where `module` has `name` from: itself, an import, or a lazy-export table {name: module}."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, name
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                    return ".".join([*base, *([node.module] if node.module else [])]), alias.name
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == name and isinstance(value, ast.Constant):
                    target = str(value.value)
                    return (target if target.startswith(package) else f"{package}.{target.lstrip('.')}"), name
    return None


@functools.cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _module_file(module: str) -> Path | None:
    """Source file of a module, by path from its top-level package: find_spec of a submodule would import parents."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        return None
    for location in spec.submodule_search_locations:
        base = Path(location, *rest)
        for candidate in (base / "__init__.py", base.with_name(base.name + ".py")):
            if candidate.is_file():
                return candidate
    return None
