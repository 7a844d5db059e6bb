"""Which extra of the package installs a module, and which packages of an extra are missing.

`pip install .` installs what a loss and its fit need. Everything else is an extra of pyproject.toml, and a command that
needs one names it.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution, requires

from reloss.runtime.errors import Unavailable

EXTRA_OF = {
    **dict.fromkeys(("PIL", "jinja2", "markupsafe", "matplotlib"), "report"),
    **dict.fromkeys(("requests", "wandb", "wandb_workspaces"), "tracking"),
    "sacrebleu": "nmt",
    "submitit": "slurm",
    "tensorboard": "tensorboard",
}
"""The extra that installs a module which the core imports, by the name of the module."""


def install_command(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install '.[{extra}]'"


def unavailable(error: ModuleNotFoundError) -> Unavailable | None:
    """Return an error that names the missing package and its extra; None for a module that no extra installs."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRA_OF:
        return None
    return Unavailable(
        f"this needs the package {module}, which is not installed: `{install_command(EXTRA_OF[module])}`"
    )


def require(*extras: str) -> None:
    """Check that the packages of several extras are installed.

    Raises:
        Unavailable: some are not; the message names all of them, and one command.
    """
    missing = dict.fromkeys(package for extra in extras for package in missing_packages(extra))
    if missing:
        raise Unavailable(f"this needs {', '.join(missing)}: `{install_command(','.join(extras))}`")


def is_installed(package: str) -> bool:
    """Return whether a package is installed, by the name that pip gives it. Imports nothing."""
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def missing_packages(extra: str) -> list[str]:
    """Return the packages of an extra that are not installed; an empty list if there is no such extra."""
    try:
        requirements = requires("reloss") or []
    except PackageNotFoundError:  # used from a checkout that is not installed
        return []
    packages = [re.match(r"[\w.-]+", line) for line in requirements if re.search(rf"extra == ['\"]{extra}['\"]", line)]
    return [package[0] for package in packages if package and package[0] != "reloss" and not is_installed(package[0])]
