"""What the command ``tubevisor`` understands: its sub-commands and their options.

What a guest prints is on stdout; everything of ours is on stderr, except what ``check``, ``schema`` and
``doctor`` were asked for. ``--json`` prints one object a line. The process itself, its signals and the codes
it may exit with, belong to ``supervisor.cli``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from supervisor.exit_codes import ExitCode

if TYPE_CHECKING:
    from supervisor.config import Config

__all__ = ["cli"]

_config_argument = click.argument("config", type=click.Path(path_type=Path))
_set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Lay a value over the configuration, such as supervisor.in_process=true. May be repeated.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
_chaos_option = click.option(
    "--chaos",
    "rules",
    multiple=True,
    metavar="RULE",
    help="Kill devices while the rest runs: kill=uart0,every=50ms (also signal=, count=, jitter=, seed=, "
    "charge=yes); kill=* picks one at random each time. May be repeated.",
)
_verbose_option = click.option("-v", "--verbose", count=True, help="Log more; twice: everything.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tubevisor")
def cli() -> None:
    """Runs every device of an emulator or VM in a process of its own and brings it back when it dies."""


@cli.command()
@_config_argument
@_set_option
@_chaos_option
@_json_option
@_verbose_option
def run(
    config: Path, overrides: tuple[str, ...], rules: tuple[str, ...], as_json: bool, verbose: int
) -> None:
    """Run the devices of CONFIG, and its machine if it has one, in the foreground."""
    from supervisor.running import run_board

    _set_up_logging(verbose, as_json)
    loaded = _load(config, overrides, as_json=as_json, findings_to=sys.stderr)
    sys.exit(run_board(loaded, rules=rules, as_json=as_json))


@cli.command()
@_config_argument
@click.option(
    "--input",
    "typed",
    type=click.File("r"),
    required=True,
    help="What to type at the guest's console, line by line.",
)
@_set_option
@_chaos_option
@_json_option
@_verbose_option
def prove(
    config: Path,
    typed: Any,
    overrides: tuple[str, ...],
    rules: tuple[str, ...],
    as_json: bool,
    verbose: int,
) -> None:
    """Run CONFIG's machine twice, undisturbed and under chaos, and compare what the guest printed."""
    from supervisor.running import prove_board

    _set_up_logging(verbose, as_json)
    loaded = _load(config, overrides, as_json=as_json)
    sys.exit(
        prove_board(
            loaded, typed=typed.read(), rules=rules or ("kill=*,every=5ms,jitter=0.5",), as_json=as_json
        )
    )


@cli.command()
@_config_argument
@_set_option
@_json_option
def check(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check CONFIG without starting anything; print every mistake at once."""
    loaded = _load(config, overrides, as_json=as_json)
    if as_json:
        print(json.dumps({"ok": True, "name": loaded.name, "devices": [d.name for d in loaded.devices]}))
    else:
        count = len(loaded.devices)
        print(f"{config}: {count} device{'s' if count != 1 else ''}, no mistakes")


@cli.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    from supervisor.config import json_schema

    print(json.dumps(json_schema(), indent=2))


@cli.command()
@_json_option
def doctor(as_json: bool) -> None:
    """Say what of the optional surroundings is there; fail if something needed is not."""
    from supervisor.doctor import examine

    findings = examine(Path.cwd())
    for finding in findings:
        if as_json:
            line = {"what": finding.what, "present": finding.present, "detail": finding.detail}
            print(json.dumps({**line, "needed": finding.needed}))
        else:
            mark = "ok" if finding.present else "MISSING" if finding.needed else "-"
            print(f"{mark:8} {finding.what:42} {finding.detail}")
    sys.exit(ExitCode.FAILED if any(f.needed and not f.present for f in findings) else 0)


def _load(
    path: Path, overrides: tuple[str, ...], *, as_json: bool = False, findings_to: TextIO | None = None
) -> Config:
    """The configuration, or exit code 3 with every finding."""
    from supervisor.config import load_config
    from supervisor.errors import ConfigError

    _find_modules_beside(path)
    try:
        return load_config(path, overrides=overrides)
    except ConfigError as error:
        if as_json:
            print(json.dumps({"ok": False, "findings": error.findings}), file=findings_to)
        else:
            print(error, file=sys.stderr)
        sys.exit(ExitCode.CONFIG)


def _find_modules_beside(path: Path) -> None:
    """A board's own devices may lie beside it or in the working directory; what is installed comes first."""
    with contextlib.suppress(OSError, ValueError):  # a working directory that is gone, a path that is none
        for directory in (str(Path.cwd()), str(path.resolve().parent)):
            if directory not in sys.path:
                sys.path.append(directory)


def _set_up_logging(verbose: int, as_json: bool) -> None:
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if as_json else logging.Formatter("%(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


class _JsonLines(logging.Formatter):
    """A log record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"level": record.levelname, "logger": record.name, "message": record.getMessage()}
        return json.dumps(line)
