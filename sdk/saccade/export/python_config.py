"""Configuration files of mmdet and mmengine, which are Python, read without running them.

What is understood: assignments of literals, lists, tuples, dicts, ``dict(...)``, earlier names, ``**``, sums,
products and signs; ``_base_``, merged as mmengine merges, and what is in it: ``{{_base_.name}}``,
``_base_.name[0]``, ``_base_.name.part = value``. Anything else is refused by its line. Running a file, by
mmengine, takes `execute`.
"""

from __future__ import annotations

import ast
import copy
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from saccade.errors import MissingDependency, UsageError

__all__ = ["execute", "read"]

_DELETE = "_delete_"
_LARGEST = 2**20  # bytes of a file, and elements of a repeated list


def read(path: Path) -> dict[str, Any]:
    """The variables of the file at `path` and of its bases. UsageError names a line that cannot be read."""
    return _read(path, ())


def execute(path: Path) -> dict[str, Any]:
    """The same by mmengine, which runs the file as a program. Only for files that are trusted as such."""
    try:
        from mmengine.config import Config  # type: ignore[import-not-found, unused-ignore]
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"running {path} needs mmengine, which is not installed: pip install 'saccade[mmdet]'"
        ) from error
    try:
        content: dict[str, Any] = Config.fromfile(str(path)).to_dict()
    except Exception as error:  # whatever a program can raise
        raise UsageError(f"{path} cannot be run: {error!r}") from error
    return content


def _read(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in children:
        raise UsageError(f"{path} is its own base, by way of {children[-1]}")
    try:
        if path.stat().st_size > _LARGEST:
            raise UsageError(f"{path} has {path.stat().st_size} bytes: it is no configuration")
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except OSError as error:
        needed = f", which {children[-1]} is based on," if children else ""
        raise UsageError(f"{path}{needed} cannot be read: {error.strerror}") from error
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not Python: {error}") from error
    reader = _Reader(path, lambda base: _read(base, (*children, path.resolve())))
    own = reader.variables(tree)
    return _merged(reader.base, own, path)


def _inherited(names: Any, path: Path, read_base: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The variables of all bases of the file at `path`."""
    merged: dict[str, Any] = {}
    for base in _bases(names, path):
        content = read_base(base)
        if twice := sorted(set(merged) & set(content)):
            raise UsageError(f"{path}: two of its bases have {twice[0]!r}; mmengine refuses that too")
        merged |= content
    return merged


def _bases(value: Any, path: Path) -> list[Path]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path}: _base_ is {value!r}; it must be a file name or a list of them")
    for name in names:
        if "::" in name or "://" in name:
            raise UsageError(f"{path}: the base {name!r} is in another package: copy that file here")
    return [path.parent / name for name in names]


def _merged(base: Mapping[str, Any], own: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`base` with `own` on top, dict by dict; ``_delete_=True`` in a dict drops what the base has of it."""
    merged = dict(base)
    for key, value in own.items():
        if not isinstance(value, dict):
            merged[key] = value
            continue
        inherited = {} if value.get(_DELETE) else merged.get(key, {})
        changes = {name: each for name, each in value.items() if name != _DELETE}
        if not isinstance(inherited, dict):
            raise UsageError(
                f"{path}: {key!r} is a dict, in the base it is a {type(inherited).__name__}; mmengine wants "
                f"{_DELETE}=True to replace it"
            )
        merged[key] = _merged(inherited, changes, path)
    return merged


_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_SIGNS: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}


class _Reader:
    """Evaluates what is plain data in one file. base: its bases' variables, as the file changed them."""

    def __init__(self, path: Path, read_base: Callable[[Path], dict[str, Any]]) -> None:
        self.base: dict[str, Any] = {}
        self._path = path
        self._read_base = read_base
        self._names: dict[str, Any] = {}

    def variables(self, tree: ast.Module) -> dict[str, Any]:
        for statement in tree.body:
            match statement:
                case ast.Assign(targets=[ast.Name(id="_base_")], value=value):
                    self.base = _inherited(self._value(value), self._path, self._read_base)
                case ast.Assign(targets=[ast.Attribute() | ast.Subscript() as target], value=value):
                    self._change_base(target, self._value(value))
                case ast.Assign(targets=targets, value=value) if all(
                    isinstance(t, ast.Name) for t in targets
                ):
                    result = self._value(value)
                    self._names |= {target.id: result for target in targets if isinstance(target, ast.Name)}
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    self._names[name] = self._value(value)
                case ast.Expr(value=ast.Constant(value=str())):
                    pass  # a docstring
                case ast.With() | ast.ImportFrom(module="mmengine.config"):
                    self._refuse(statement, "a configuration in mmengine's style of imports")
                case _:
                    self._refuse(statement, "not a plain assignment")
        return {name: value for name, value in self._names.items() if not name.startswith("__")}

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return self._quoted(node, value) if isinstance(value, str) and "{{" in value else value
            case ast.List(elts=entries):
                return self._entries(entries)
            case ast.Tuple(elts=entries):
                return tuple(self._entries(entries))
            case ast.Dict(keys=keys, values=values):
                return self._dict(
                    [(key and self._value(key), each) for key, each in zip(keys, values, strict=True)]
                )
            case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
                return self._dict([(each.arg, each.value) for each in keywords])
            case ast.Name(id=name) if name in self._names:
                return self._names[name]
            case ast.UnaryOp(op=sign, operand=operand):
                return self._computed(node, _SIGNS.get(type(sign)), self._value(operand))
            case ast.BinOp(left=left, op=sign, right=right):
                return self._computed(node, _OPERATORS.get(type(sign)), self._value(left), self._value(right))
            case ast.Set(elts=[ast.Set(elts=[ast.Attribute() | ast.Subscript() as reference])]):
                return self._of_base(reference)
            case ast.Attribute() | ast.Subscript():
                return self._of_base(node)
        self._refuse(node, "not plain data")

    def _quoted(self, node: ast.expr, text: str) -> Any:
        """What a string that is one reference, '{{_base_.name}}', stands for."""
        inner = text.strip().removeprefix("{{").removesuffix("}}").strip()
        try:
            reference = ast.parse(inner, mode="eval").body
        except SyntaxError:
            self._refuse(node, "not plain data")
        return self._of_base(ast.copy_location(reference, node))

    def _of_base(self, node: ast.expr) -> Any:
        """A copy of what ``_base_.name``, ``_base_.name.part`` or ``_base_.name[index]`` is."""
        match node:
            case ast.Name(id="_base_"):
                return self.base
            case ast.Attribute(value=owner, attr=key):
                pass
            case ast.Subscript(value=owner, slice=index):
                key = self._value(index)
            case _:
                self._refuse(node, "not plain data")
        try:
            return copy.deepcopy(self._of_base(owner)[key])
        except (KeyError, IndexError, TypeError):
            self._refuse(node, "not in the base")

    def _change_base(self, node: ast.Attribute | ast.Subscript, value: Any) -> None:
        """``_base_.name.part = value``: the whole of `name` is written anew with the part changed."""
        key = node.attr if isinstance(node, ast.Attribute) else self._value(node.slice)
        owner = self._of_base(node.value)
        try:
            owner[key] = value
        except (IndexError, TypeError):
            self._refuse(node, "not in the base")
        if isinstance(node.value, ast.Attribute | ast.Subscript):
            self._change_base(node.value, owner)

    def _entries(self, nodes: list[ast.expr]) -> list[Any]:
        entries: list[Any] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                entries += self._value(node.value)
            else:
                entries.append(self._value(node))
        return entries

    def _dict(self, pairs: list[tuple[Any, ast.expr]]) -> dict[Any, Any]:
        """A key None is what ``**`` stands before."""
        made: dict[Any, Any] = {}
        for key, node in pairs:
            value = self._value(node)
            if key is not None:
                made[key] = value
            elif isinstance(value, dict):
                made |= value
            else:
                self._refuse(node, "not a dict")
        return made

    def _computed(self, node: ast.expr, compute: Callable[..., Any] | None, *values: Any) -> Any:
        sized = [len(value) for value in values if isinstance(value, str | list | tuple)]
        counts = [value for value in values if isinstance(value, int)]
        large = sized and counts and max(sized) * max(counts) > _LARGEST
        if compute is None or large or any(abs(value) > 2**63 for value in counts):
            self._refuse(node, "not plain data")
        try:
            return compute(*values)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise UsageError(f"{self._path}, line {node.lineno}: {error}") from error

    def _refuse(self, node: ast.stmt | ast.expr, what: str) -> NoReturn:
        text = ast.unparse(node).splitlines()[0]
        raise UsageError(
            f"{self._path}, line {node.lineno}: {text[:60]!r} is {what}; configurations are read, not run. "
            "Write its value there, give the dumped configuration of a training (work_dir/*.py), or, if you "
            "trust the file as a program, add --execute-config"
        )
