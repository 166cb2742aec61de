"""A user's Python file and the files beside it: run once, with a place to import from for as long as they are used."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.util import resolve_name
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from purity_cli.errors import PurityError, said

T = TypeVar("T")
OWN_NAME = "purity_user_"
HERE = Path(__file__).resolve().parents[1]
LIBRARIES = (HERE, *(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")))
INSTALLED = {"site-packages", "dist-packages"}
DYNAMIC = re.compile(r"import_module|__import__|importlib|exec\(")
READS_OPTIONS = {"argparse", "optparse", "getopt", "click", "typer", "absl", "fire", "docopt", "tyro", "simple_parsing"}


class UserFolder:
    """A folder whose files a user's network may import, as they could if Python ran it, also while the network runs.

    One folder at a time is at work: it is the last on `sys.path`, so that its files hide no library, and what was
    imported from it is in `sys.modules`. Another folder's files of the same names are set aside meanwhile.
    """

    at_work: ClassVar[UserFolder | None] = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.modules: dict[str, ModuleType] = {}

    def __deepcopy__(self, _: dict[int, Any]) -> UserFolder:
        return self  # it is held by a network's hook, and copies of the network share it

    def enter(self, *_: object) -> None:
        """Take the place of the folder that was at work; as a forward pre-hook, whenever a network of its runs."""
        if UserFolder.at_work is self:
            return
        if UserFolder.at_work is not None:
            UserFolder.at_work.leave()
        sys.path.append(str(self.path))
        sys.modules.update(self.modules)
        UserFolder.at_work = self

    def leave(self) -> None:
        """Set aside what was imported from here, if this folder is at work."""
        if UserFolder.at_work is not self:
            return
        if str(self.path) in sys.path:
            sys.path.reverse()
            sys.path.remove(str(self.path))  # ours is the last
            sys.path.reverse()
        self.modules = {name: module for name, module in sys.modules.items() if self._holds(module)}
        for name in self.modules:
            del sys.modules[name]
        UserFolder.at_work = None

    def loaded(self) -> list[tuple[str, Path]]:
        """The modules that were imported from here, and their files."""
        modules = self.modules if UserFolder.at_work is not self else sys.modules
        files = ((name, getattr(module, "__file__", None)) for name, module in modules.items() if self._holds(module))
        return [(name, Path(file).resolve()) for name, file in files if file]

    def find(self, name: str) -> Path | None:
        """The file of a module, where it is no library's."""
        module = sys.modules.get(name) if UserFolder.at_work is self else self.modules.get(name, sys.modules.get(name))
        file = getattr(module, "__file__", None)
        stem = self.path.joinpath(*name.split("."))
        places = [Path(file)] if file else [] if module else [stem.with_suffix(".py"), stem / "__init__.py"]
        return next((place for place in places if place.is_file() and not _is_library(place)), None)

    def _holds(self, module: ModuleType) -> bool:
        name = getattr(module, "__name__", "")
        file = getattr(module, "__file__", None)
        places = [file] if file else list(getattr(module, "__path__", []))
        return not name.startswith(OWN_NAME) and any(
            Path(place).is_relative_to(self.path) and not _is_library(Path(place)) for place in places
        )


@cache
def _is_library(file: Path) -> bool:
    place = file.resolve()
    return not INSTALLED.isdisjoint(place.parts) or any(place.is_relative_to(folder) for folder in LIBRARIES)


@contextmanager
def _torch_kept() -> Iterator[None]:
    """PyTorch's settings for all of the process, which a file may well change for itself, are as before at the end."""
    dtype = torch.get_default_dtype()
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            yield
    finally:
        torch.set_default_dtype(dtype)


class UserCode:
    """A user's file, run; `UserCode.of` runs each content of each file once."""

    known: ClassVar[dict[Path, UserCode]] = {}

    def __init__(self, path: Path, folder: UserFolder) -> None:
        self.path, self.folder = path, folder
        self._place: str | None = None
        self.module = self.working(self._run)
        self.content = {file: _digest(file) for file in self.code()}

    @classmethod
    def of(cls, path: Path) -> UserCode:
        """The file as it is now; PurityError where it is not there or does not run."""
        if not path.is_file():
            raise PurityError(f"The model file {path} is not there: check the path given to --model.")
        path = path.resolve()
        beside = [code for code in cls.known.values() if code.path.parent == path.parent]
        if any(code.has_changed() for code in beside):
            beside[0].folder.leave()
            cls.known = {known: code for known, code in cls.known.items() if code not in beside}
            beside = []
        if path not in cls.known:
            folder = beside[0].folder if beside else UserFolder(path.parent)
            try:
                cls.known[path] = cls(path, folder)
            except PurityError:
                if not beside:
                    folder.leave()  # once it is mended, its neighbours are imported anew
                raise
        return cls.known[path]

    def has_changed(self) -> bool:
        """Whether the file, or one that it brought in, is another than when it ran."""
        return any(digest != _digest(file) for file, digest in self.content.items())

    def code(self, net: nn.Module | None = None) -> tuple[Path, ...]:
        """All files of the user's own code: this one, those of the classes of `net`, and what these import, or may
        import later, directly or not.

        Read off the import statements, and so the same whatever has run before; where names are put together as it
        runs (`importlib.import_module`), all that was imported from the folder. Libraries are left out.
        """
        found: dict[Path, str] = {}
        todo = [(self.path, ""), *((file, "") for file in _classes(net) if not _is_library(file))]
        while todo:
            file, package = todo.pop()
            if file in found:
                continue
            found[file] = package
            try:
                tree = ast.parse(file.read_bytes())
            except (OSError, SyntaxError, ValueError):
                continue
            places = ((name, self.folder.find(name)) for name in _imported(tree, package))
            todo += [
                (place.resolve(), name if place.name == "__init__.py" else name.rpartition(".")[0])
                for name, place in places
                if place
            ]
            if DYNAMIC.search(file.read_text(errors="replace")):
                todo += [(place, name.rpartition(".")[0]) for name, place in self.folder.loaded()]
        return tuple(sorted(found))

    def working(self, action: Callable[[], T]) -> T:
        """Do something of the user's, as if Python ran the file: with what lies beside it, and no options.

        What it prints goes to stderr, lest it end up among the results.
        """
        self.folder.enter()
        argv, sys.argv = sys.argv, [str(self.path)]
        try:
            with redirect_stdout(sys.stderr), self._in_its_place(), _torch_kept():
                return action()
        finally:
            sys.argv = argv

    @contextmanager
    def _in_its_place(self) -> Iterator[None]:
        """Where the file has changed the working directory it finds that again, and paths of purity's mean what they
        meant."""
        here = None
        with suppress(OSError):
            here = os.getcwd()
            os.chdir(self._place or here)
        try:
            yield
        finally:
            with suppress(OSError):
                self._place = os.getcwd()
                os.chdir(here or self._place)

    def _run(self) -> ModuleType:
        # A name of its own, so that a user's torch.py or timm.py hides nothing, nor another file of the same name.
        name = f"{OWN_NAME}{self.path.stem}_{hashlib.sha256(os.fsencode(self.path)).hexdigest()[:8]}"
        module = ModuleType(name)
        module.__file__ = str(self.path)
        sys.modules[name] = module  # dataclasses look their module up while it is being executed
        try:
            with _usage_kept():
                SourceFileLoader(name, str(self.path)).exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise PurityError(f"{self.path} {self.why(error, 'as it is imported')}") from error
        return module

    def why(self, error: BaseException, when: str) -> str:
        """What became of the user's code `when`, and the way out of it."""
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, SystemExit):
            through = {part for frame in frames for part in Path(frame.filename).with_suffix("").parts}
            guard = 'under `if __name__ == "__main__":`'
            if through & READS_OPTIONS:
                hint = f"which purity has none for; read them {guard}, or give each a default"
                usage = getattr(error, "usage", "")
                return f"reads command-line options {when}{f' ({usage})' if usage else ''}, {hint}."
            return f"ends the program {when} (SystemExit: {error.code}): put what does so {guard}."
        own = [frame for frame in frames if Path(frame.filename).is_file() and not _is_library(Path(frame.filename))]
        line = f" in line {own[-1].lineno} of {Path(own[-1].filename).name}" if own else ""
        if isinstance(error, SyntaxError):
            line = f" in line {error.lineno} of {Path(error.filename or self.path).name}"
        hint = "mend that; --debug shows the rest"
        if isinstance(error, ModuleNotFoundError) and error.name:
            hint = f"install {error.name.partition('.')[0]} where purity is installed, or put it beside the file"
        elif isinstance(error, ImportError) and (hidden := self._hidden()):
            hint = f"an installed library hides {hidden} beside it, so rename that"
        return f"cannot be used: {when} it fails{line} ({said(error)}): {hint}."

    def _hidden(self) -> str | None:
        """A file beside this one whose name an installed library has as well, which was imported in its place."""
        for name in _imported(ast.parse(self.path.read_bytes()), ""):
            file = getattr(sys.modules.get(name.partition(".")[0]), "__file__", None)
            beside = [self.path.parent / f"{name}.py", self.path.parent / name]
            if file and _is_library(Path(file)):
                return next((place.name for place in beside if place.exists()), None)
        return None


def _classes(net: nn.Module | None) -> set[Path]:
    """The files in which the classes of a network stand."""
    codes = (
        getattr(kind.forward, "__code__", None) for kind in {type(part) for part in (net.modules() if net else ())}
    )
    files = {Path(code.co_filename) for code in codes if code}
    return {file.resolve() for file in files if file.is_file()}


def _digest(file: Path) -> bytes | None:
    return hashlib.sha256(file.read_bytes()).digest() if file.is_file() else None


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Modules that a file may import, wherever in it, and the packages that these lie in."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level and not package:
                continue
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:k]) for k in range(1, len(parts) + 1))


@contextmanager
def _usage_kept() -> Iterator[None]:
    """Keep what a parser of options prints before it ends the program: its last line goes into the error's `usage`."""
    text = StringIO()
    try:
        with redirect_stderr(text):
            yield
    except SystemExit as error:
        lines = text.getvalue().strip().splitlines()
        error.usage = lines[-1] if lines else ""  # type: ignore[attr-defined]
        raise
    except BaseException:
        sys.stderr.write(text.getvalue())
        raise
    sys.stderr.write(text.getvalue())
