"""A user's Python files: run once, with a place to import from for as long as their networks are used."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch

from purity_cli.errors import PurityError, said

OWN_NAME = "purity_user_"
HERE = Path(__file__).resolve().parents[1]
OTHERS = (HERE, *(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")))
INSTALLED = {"site-packages", "dist-packages"}
NUMBERS = count()
RELATIVE = re.compile(rb"^\s*from\s+\.", re.MULTILINE)


class UserFolder:
    """A folder whose files a user's networks may import, as they could if Python ran them, also while a network runs.

    One folder at a time is at work: it is the last on `sys.path`, so that its files hide no library, and what was
    imported from it is in `sys.modules`. Another folder's files of the same names are set aside meanwhile.
    """

    at_work: ClassVar[UserFolder | None] = None
    known: ClassVar[dict[Path, UserFolder]] = {}

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, next(NUMBERS)
        self.modules: dict[str, ModuleType] = {}
        self.content: dict[Path, str] = {}
        """Digests of what has run here, and of what lies beside it and may run later."""
        self._place: str | None = None
        self._outputs: list[Any] = []

    def __deepcopy__(self, _: dict[int, Any]) -> UserFolder:
        return self  # it is held by a network's hook, and copies of the network share it

    @classmethod
    def of(cls, path: Path) -> UserFolder:
        """The folder of a file; anew where a file in it has changed since it ran."""
        folder = cls.known.get(path.parent)
        if folder is None or any(_digest(file) != digest for file, digest in folder.content.items()):
            if folder is not None:
                folder.leave()
            folder = cls.known[path.parent] = cls(path.parent)
        return folder

    def module(self, path: Path) -> ModuleType:
        """The file as a module, run once; PurityError where it does not run.

        It has a name of its own, so that a user's torch.py or timm.py hides nothing, nor another file of the same name.
        It lies in a package, which is the folder, so that it may import its neighbours relatively; a file that does so
        in a folder with an `__init__.py` is a module of that package.
        """
        root = self.path
        while RELATIVE.search(path.read_bytes()) and (root / "__init__.py").is_file() and root != root.parent:
            root = root.parent
        package = f"{OWN_NAME}{self.number}"
        parts = [part.replace(".", "_") for part in path.relative_to(root).with_suffix("").parts]
        name = ".".join([package, *parts])
        if name in sys.modules:
            return sys.modules[name]
        try:
            with self.working(path):
                sys.modules[package] = ModuleType(package)
                sys.modules[package].__path__ = [str(root)]
                import_module(name.rpartition(".")[0])
                if name not in sys.modules:  # which it is where its package imports it
                    _run(name, path)
        except (Exception, SystemExit) as error:
            self.leave()
            del self.known[self.path]  # once it is mended, its neighbours are imported anew
            raise PurityError(f"{path} {why(error, 'as it is imported')}") from error
        files = (_file(module) for module in list(sys.modules.values()))
        ran = (file for file in files if file and file.is_relative_to(root) and not _is_library(file))
        self.content = {file: _digest(file) for file in {*self.path.glob("*.py"), *ran}}
        return sys.modules[name]

    def enter(self, *_: object) -> None:
        """Take the place of the folder that was at work."""
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
        found = {name: module for name, module in sys.modules.items() if not name.startswith(OWN_NAME)}
        self.modules = {name: module for name, module in found.items() if self._has(_file(module))}
        for name in self.modules:
            del sys.modules[name]
        UserFolder.at_work = None

    def attach(self, network: torch.nn.Module) -> None:
        """Have the folder at work whenever the network runs, and what this prints go to stderr, lest it end up among
        the results."""
        network.register_forward_pre_hook(self._begin)
        network.register_forward_hook(self._end, always_call=True)

    def _begin(self, *_: object) -> None:
        self.enter()
        self._outputs.append(sys.stdout)
        sys.stdout = sys.stderr

    def _end(self, *_: object) -> None:
        if self._outputs:
            sys.stdout = self._outputs.pop()

    @contextmanager
    def working(self, path: Path) -> Iterator[None]:
        """Something of the user's runs as if Python ran the file: with what lies beside it, no options, and the working
        directory that it changed to. What it sets for all of the process is as before at the end."""
        self.enter()
        argv, dtype, here = sys.argv, torch.get_default_dtype(), None
        with suppress(OSError):
            here = os.getcwd()
            os.chdir(self._place or here)
        sys.argv = [str(path)]
        try:
            with redirect_stdout(sys.stderr), torch.set_grad_enabled(torch.is_grad_enabled()):
                yield
        finally:
            for file in filter(self._has, map(_file, list(sys.modules.values()))):
                if file and file not in self.content and file.is_file():
                    self.content[file] = _digest(file)  # what a function imports
            sys.argv = argv
            torch.set_default_dtype(dtype)
            with suppress(OSError):
                self._place = os.getcwd()
                os.chdir(here or self._place)

    def _has(self, file: Path | None) -> bool:
        return file is not None and file.is_relative_to(self.path) and not _is_library(file)


def why(error: BaseException, when: str) -> str:
    """What became of the user's code `when`, and the way out of it."""
    if isinstance(error, SystemExit):
        return (
            f"ends the program {when} (exit code {error.code}): purity passes no command-line options, so give each a "
            'default, and put what ends the program under `if __name__ == "__main__":`.'
        )
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    own = [i for i, file in enumerate(frames) if file.is_file() and not _is_library(file)]
    line = ""
    if isinstance(error, SyntaxError) and error.filename:
        line = f" in line {error.lineno} of {Path(error.filename).name}"
    elif own:
        number = traceback.extract_tb(error.__traceback__)[own[-1]].lineno
        line = f" in line {number} of {frames[own[-1]].name}"
    hint = "mend that; --debug shows the rest"
    if isinstance(error, ModuleNotFoundError) and error.name:
        hint = f"install {error.name.partition('.')[0]} where purity is installed, or put it beside the file"
    return f"cannot be used: {when} it fails{line} ({said(error)}): {hint}."


def _run(name: str, path: Path) -> None:
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = module_from_spec(spec)  # dataclasses look their module up while it is being executed
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _file(module: ModuleType) -> Path | None:
    """Where a module lies: its file, or the folder of a package without one."""
    file, folders = getattr(module, "__file__", None), getattr(module, "__path__", None)
    places = [file] if file else list(folders) if isinstance(folders, Iterable) else []
    return next((Path(place) for place in places), None)


@cache
def _is_library(file: Path) -> bool:
    place = file.resolve()
    return not INSTALLED.isdisjoint(place.parts) or any(place.is_relative_to(folder) for folder in OTHERS)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
