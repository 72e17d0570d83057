"""The commands: parse, call, print; no logic of their own.

Typer alone is imported at the top: `--help` is quick, and nothing heavy is loaded for a no-op.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from transferbench.cli.comparing import compare
from transferbench.cli.endings import Warnings, complain, terminated_as_exit, usage_sentence
from transferbench.cli.export import export
from transferbench.cli.options import (
    DataRoot,
    Device,
    Json,
    Quiet,
    Runs,
    SkipCorrupt,
    progress,
    show,
    text,
)
from transferbench.errors import UserError, unknown

# Typer has carried click's exceptions under several names; this is their stable handle.
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]


class _Commands(typer.core.TyperGroup):
    """The commands, with our sentence for an unknown one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            raise unknown("command", name, self.commands)
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    # Plain help: rich's costs more than half of the whole start.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Pretrain, evaluate and compare self-supervised image representations by transfer.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"transferbench {installed('transferbench')}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        names = ", ".join(ctx.command.commands)  # type: ignore[attr-defined]
        raise UserError(f"say what to do: {names}; --help explains them")


@app.command("pretrain", short_help="Recipe to run folder.")
def _pretrain(
    method: Annotated[
        str | None, text("--method", metavar="NAME", help="A method, e.g. swav.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every method, or every recipe of the board.")
    ] = False,
    board: Annotated[
        str | None, text("--board", metavar="B", help="Pretrain what this board's models need.")
    ] = None,
    scale: Annotated[
        str | None,
        text("--scale", metavar="S", help="tiny or small.  [default: small with CUDA, else tiny]"),
    ] = None,
    recipe: Annotated[
        str | None, text("--recipe", metavar="FILE", help="A recipe's file or name.")
    ] = None,
    data: Annotated[
        str | None, text("--data", metavar="NAME", help="Data set, or folder:PATH.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        text("--set", metavar="KEY=VALUE", help="Change the recipe; repeatable."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, help="Seed of the run.")
    ] = None,
    device: Device = None,
    runs: Runs = Path("runs"),
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, replacing the run that is there.")
    ] = False,
    skip_corrupt: SkipCorrupt = 0,
    data_root: DataRoot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Train a recipe into a run folder; the same command continues an interrupted run."""
    if (method is None) == (not everything) and not (recipe and not everything):
        raise UserError("say which: --method NAME, --all or --recipe FILE")
    if board and (recipe or scale or data):
        raise UserError("a board names its own recipes: leave out --recipe, --scale and --data")
    if everything and recipe:
        raise UserError("--all and --recipe do not go together")
    from transferbench import api
    from transferbench.api.printing import pretrained_lines, pretraining_problems

    given: dict[str, Any] = {"overrides": changes or (), "seed": seed}
    if board is not None:
        recipes = api.board_recipes(board, method=method, runs=runs, **given)
    else:
        methods = [method] if method else []
        recipes = api.method_recipes(
            methods, scale=scale, recipe=recipe, runs=runs, data=data, **given
        )
    done = api.pretrain_recipes(
        recipes,
        device=device,
        restart=restart,
        data_root=data_root,
        skip_corrupt=skip_corrupt,
        progress=progress(quiet),
    )
    show({"runs": [each.plain() for each in done]}, pretrained_lines(done), as_json, quiet)
    for problem in pretraining_problems(done):
        complain(f"error: {problem}")
    states = {each.state for each in done}
    return 1 if "failed" in states else 2 if "refused" in states else 0


@app.command("evaluate", short_help="Models to records.")
def _evaluate(
    models: Annotated[
        list[str] | None,
        text(
            "--model",
            metavar="REF",
            help="run:DIR, file:PATH@ARCH, timm:ARCH, hub:ORG/NAME or random:ARCH, or a model of "
            "the board; repeatable.",
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every model of the board, or every finished run.")
    ] = False,
    board: Annotated[
        str | None, text("--board", metavar="B", help="Name or file.  [default: local]")
    ] = None,
    datasets: Annotated[
        list[str] | None,
        text("--dataset", metavar="NAME", help="Only this data set; repeatable."),
    ] = None,
    protocols: Annotated[
        list[str] | None,
        text("--protocol", metavar="NAME", help="Only this protocol; repeatable."),
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", metavar="N", min=0, help="Only this seed; repeatable."),
    ] = None,
    device: Device = None,
    runs: Runs = Path("runs"),
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run jobs again that failed before.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell each job's state and run nothing.")
    ] = False,
    shard: Annotated[
        str | None, text("--shard", metavar="I/N", help="Only the I-th of N parts, from 1/N.")
    ] = None,
    skip_corrupt: SkipCorrupt = 0,
    data_root: DataRoot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Run the jobs (model x data set x protocol x seed) that have no fresh record."""
    if bool(models) == everything:
        raise UserError("say which models: --model REF (repeatable) or --all")
    from transferbench import api
    from transferbench.api.printing import complaints, evaluation_lines

    evaluation = api.evaluate_board(
        board,
        models=models or (),
        datasets=datasets or (),
        protocols=protocols or (),
        seeds=seeds or (),
        device=device,
        runs=runs,
        data_root=data_root,
        retry_failed=retry_failed,
        dry_run=dry_run,
        part=shard,
        skip_corrupt=skip_corrupt,
        progress=progress(quiet),
    )
    lines = evaluation_lines(evaluation, dry_run=dry_run)
    show(evaluation.plain(), lines, as_json, quiet)
    for line in complaints(evaluation.jobs):
        complain(line)
    if dry_run:
        return 0
    return 1 if evaluation.failed else 2 if evaluation.unreadable else 0


@app.command("leaderboard", short_help="Records to tables.")
def _leaderboard(
    board: Annotated[
        str | None, text("--board", metavar="B", help="Name or file.  [default: local]")
    ] = None,
    form: Annotated[
        str, text("--format", metavar="F", help="markdown, csv, latex or json.")
    ] = "markdown",
    errors: Annotated[bool, typer.Option("--errors", help="Show standard errors.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Fail if the board's README is not up to date.")
    ] = False,
    runs: Runs = Path("runs"),
    data_root: DataRoot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Render a board's records: a table per protocol, written to leaderboards/BOARD/README.md."""
    from transferbench import api
    from transferbench.leaderboard import render

    if form not in render.FORMATS:
        raise unknown("format", form, render.FORMATS)
    if check and form != "markdown":
        raise UserError(f"--check looks at the README, which is markdown, not {form}")
    found = api.leaderboard(board, runs=runs, data_root=data_root)
    for problem in found.problems:
        complain(f"not counted: {problem}")
    if check:
        if found.is_current(errors=errors):
            show({"readme": str(found.readme), "current": True}, [], as_json, quiet)
            return 0
        show({"readme": str(found.readme), "current": False}, [], as_json, quiet)
        complain(f"{found.readme} is not up to date; render it with: {found.command}")
        return 1
    if form != "markdown":
        form = "json" if as_json else form
        print(render.text(found.tables, form, board=found.board.name, errors=errors), end="")
        return 0
    changed = found.save(errors=errors)
    if as_json:
        print(render.text(found.tables, "json", board=found.board.name, errors=errors), end="")
    elif not quiet:
        render.show(found.tables, errors=errors)
        print(f"{found.readme}{'' if changed else ' (unchanged)'}")
    return 0


app.command("compare", short_help="Two models, set by set.")(compare)


@app.command("list", short_help="Names of methods, datasets, ...")
def _list(
    what: Annotated[
        str, typer.Argument(help="methods, datasets, protocols, recipes, boards or runs.")
    ],
    runs: Runs = Path("runs"),
    data_root: DataRoot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """List names: methods, datasets, protocols, recipes, boards or runs."""
    from transferbench.api import listing
    from transferbench.api.printing import listed_lines

    rows = listing.rows(what, data_root=data_root, runs_folder=runs)
    show({what: rows}, listed_lines(rows), as_json, quiet=False)
    return 0


@app.command("fetch", short_help="Data sets from the Hub.")
def _fetch(
    names: Annotated[list[str], typer.Argument(help="Data sets, e.g. pets; see list datasets.")],
    data_root: DataRoot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Fetch data sets from the Hugging Face Hub, at the revisions that their cards pin."""
    from transferbench.api.fetching import fetch

    done = [fetch(name, data_root=data_root) for name in names]
    show({"fetched": done}, done, as_json, quiet)
    return 0


@app.command("check", short_help="Explain a file or folder.")
def _check(
    path: Annotated[str, typer.Argument(help="Data folder, recipe, board, run or weights file.")],
    skip_corrupt: SkipCorrupt = 0,
    data_root: DataRoot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Explain a data folder, a recipe, a board, a run or a weights file, or say what is wrong."""
    from transferbench.api.checking import check

    finding = check(path, skip_corrupt=skip_corrupt, progress=progress(quiet))
    show(finding.plain(), finding.sentences, as_json, quiet)
    return 0


app.command("export", short_help="Backbone to other tools' files.")(export)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.

    Returns
    -------
    int
        0 done (also: nothing to do), 1 the work failed or a check did not hold, 2 bad input, 130
        or 143 interrupted by SIGINT or SIGTERM.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    shown = Warnings()
    with terminated_as_exit(), warnings.catch_warnings():
        # Whoever sets -W or PYTHONWARNINGS sees all warnings as Python shows them.
        if not sys.warnoptions:
            if "--quiet" in given:
                warnings.simplefilter("ignore")
            warnings.showwarning = shown.show
        try:
            code = app(args=given, prog_name="transferbench", standalone_mode=False)
            sys.stdout.flush()
            shown.tell()
        except UserError as error:
            return _bad_input(str(error))
        except _ClickException as error:
            return _bad_input(usage_sentence(error))
        except BrokenPipeError:
            # Whoever read our output has enough; Python's own flush at exit must not complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (KeyboardInterrupt, typer.Abort):
            code = 130
        except SystemExit as error:
            code = error.code
        if code in (130, 143):
            complain("interrupted; the same command continues")
        return code if isinstance(code, int) else 0


def _bad_input(text: str) -> int:
    complain(f"error: {text}")
    return 2
