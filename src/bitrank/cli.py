"""The command `bitrank`: what one does beside `dvc repro`.

Each command imports what it needs when it runs, so that `bitrank --help` answers at once. A fault
of the user's is one line on the error stream and exit status 1; a defect of ours keeps its
traceback. Tables are drawn for a terminal and are plain, whole lines everywhere else.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from bitrank import adapters_command, plan_command, terminal
from bitrank.errors import UserError

PARAMS = Path("params.yaml")
app = typer.Typer(
    help="Which LoRA rank, which precision, and what does it cost?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(plan_command.plan)
app.add_typer(adapters_command.app, name="adapters")


@app.command()
def params(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="As for Hydra: precision=fp32 adapter.rank=16")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if params.yaml differs.")
    ] = False,
) -> None:
    """Compose params.yaml from conf/, as `dvc exp run` does, and tell what changed."""
    from bitrank import composition, records

    text = composition.compose_text(overrides or [])
    before = PARAMS.read_text(encoding="utf-8") if PARAMS.is_file() else None
    if check:
        _check(before, text)
        return
    records.write_text(PARAMS, text)
    changes = composition.list_changes(before, text)
    for line in changes:
        print(line)
    noun = "value" if len(changes) == 1 else "values"
    what = "new" if before is None else f"{len(changes) or 'no'} {noun} changed"
    print(f"{PARAMS}: {what}" + ("; next: dvc repro" if changes or before is None else ""))


def _check(before: str | None, text: str) -> None:
    if before == text:
        print(f"{PARAMS} is what conf/ composes")
        return
    names = (str(PARAMS), "composed from conf/")
    old, new = (before or "").splitlines(), text.splitlines()
    print("\n".join(difflib.unified_diff(old, new, *names, lineterm="")))
    raise UserError(f"{PARAMS} is not what conf/ composes with these overrides")


@app.command()
def summary() -> None:
    """Tell what the last run found, and where to read on."""
    from bitrank import findings, paths, runs

    items = {subject: paths.items(subject) for subject in runs.ANSWERING}
    run = runs.read_run(paths.RESULTS, items)
    print(findings.write_headline(run))
    for sentence in [*findings.write_points(run), *findings.write_warnings(run)]:
        print(f"- {sentence}")
    print(f"report: {paths.REPORT / 'report.html'}    all runs: make ui")


@app.command()
def publish(
    sweep: Annotated[
        str | None, typer.Argument(help="Of data/sweeps; without it, the run in data/results.")
    ] = None,
) -> None:
    """Bring MLflow up to date with the records of a run or a sweep; as often as you like."""
    from bitrank import config, paths, tracking

    experiment = config.load().tracking.experiment
    if sweep is None:
        done = tracking.publish(experiment=experiment)
        print(f"{done.outcome}: {done.name} in {done.store}")
        return
    all_done = tracking.publish_sweep(paths.SWEEPS / sweep, experiment)
    count = f"{all_done.num_points} points, {all_done.num_published} of them new or changed"
    print(f"{all_done.outcome}: {all_done.name} in {all_done.store}, {count}")


@app.command()
def report(
    sweep: Annotated[str, typer.Argument(help="Of data/sweeps.")],
    foreign: Annotated[
        list[Path] | None,
        typer.Option(help="Results of PEFT's method comparison, to stand beside; a file or folder"),
    ] = None,
) -> None:
    """Tell what a sweep shows: a recommendation, tables, a verdict for each published claim."""
    from bitrank import paths, sweep_projection, sweep_report

    folder = paths.SWEEPS / sweep
    print(sweep_report.write_sweep_report(folder, foreign=foreign or ()))
    page = folder / sweep_projection.REPORT / "report.html"
    print(f"report: {page}    beside it: Markdown, tables, figures")
    print(f"to MLflow: bitrank publish {sweep}    into git: bitrank paper {sweep}")


@app.command()
def paper(
    sweep: Annotated[str | None, typer.Argument(help="Without it, all that are kept.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if a report would differ.")
    ] = False,
    restore: Annotated[
        bool, typer.Option("--restore", help="Bring a kept sweep back to data/sweeps.")
    ] = False,
) -> None:
    """Keep a sweep in data/papers for git; rebuild the reports of all that are kept."""
    from bitrank import papers, paths

    names = [] if sweep is None else [sweep]
    if check and restore:
        raise UserError("--check writes nothing and --restore does: give one of them")
    if not (names or papers.find(names)):
        print(f"none is kept in {paths.PAPERS}; `bitrank paper <sweep>` keeps one")
    elif check:
        kept = papers.check(names)
        print(f"{len(kept)} in {paths.PAPERS}: the same bytes")
    elif restore:
        for kept_one in papers.find(names):
            print(f"restored: {papers.restore(kept_one)}")
    elif sweep is not None and (paths.SWEEPS / sweep).is_dir():
        print(f"to commit it: git add {papers.keep(paths.SWEEPS / sweep)}")
    else:
        for kept_one in papers.find(names):
            papers.rebuild(kept_one)
            print(f"rebuilt from its records: {kept_one}")


@app.command()
def verify(
    sweep: Annotated[str, typer.Argument(help="Of data/sweeps; or a folder, or an archive.")],
    keys: Annotated[
        list[str] | None, typer.Argument(help="With --rerun: points to run; else all.")
    ] = None,
    rerun: Annotated[
        bool, typer.Option("--rerun", help="Compute points again, from nothing, and compare.")
    ] = False,
) -> None:
    """Check what is kept of a sweep against the commit that it names."""
    from bitrank import archive as archives
    from bitrank import verify as verification

    if keys and not rerun:
        raise UserError("keys name the points to run again: add --rerun")
    with archives.opened(sweep) as folder:
        found = verification.verify(folder)
        terminal.show_table(("what", "checked", "faults"), found.rows())
        for note in found.notes:
            print(f"note: {note}")
        if rerun:
            from bitrank import rerun as reruns

            for line in reruns.rerun_and_tell(folder, keys or []):
                print(line, flush=True)
    found.check()
    print("no faults")


@app.command()
def archive(
    sweep: Annotated[str, typer.Argument(help="Of data/sweeps.")],
    output: Annotated[
        Path | None, typer.Option(help="The file; else data/sweeps/<sweep>.tar.gz.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also with faults or points missing; it names them.")
    ] = False,
) -> None:
    """Put a sweep, its report and its code into one file to publish."""
    from bitrank import archive as archives
    from bitrank import identity, paths
    from bitrank.tables import format_bytes

    target = output or paths.SWEEPS / f"{sweep}{archives.SUFFIX}"
    archives.archive(paths.SWEEPS / sweep, target, force)
    size = format_bytes(target.stat().st_size)
    print(f"{target}: {size}, sha256 {identity.hash_file(target)}")


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="On 127.0.0.1, for this machine only.")] = 5000,
) -> None:
    """Show this project's runs in MLflow."""
    from bitrank import board

    address, command, environment = board.prepare_server(port)
    if "MLFLOW_TRACKING_URI" in os.environ:
        print("note: MLFLOW_TRACKING_URI is set: newer runs are there, not here")
    print(f"starting MLflow (about 10 seconds); then open\n  {address}\nCtrl-C ends it", flush=True)
    board.serve(command, environment)


@app.command()
def predict(
    prompt: Annotated[str, typer.Argument(help="A text, put into data.prompt; or a whole prompt.")],
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of the answer; as in evaluation, or 8.")
    ] = None,
) -> None:
    """Ask the original, the quantized, the adapted and the merged model, side by side."""
    from bitrank import config, environment, paths
    from bitrank import predict as prediction
    from bitrank.data_config import Generation
    from bitrank.progress import progress

    run = config.load()
    whole = prediction.make_prompt(prompt, run.data)
    task = run.data.task
    length = max_new_tokens or (task.max_new_tokens if isinstance(task, Generation) else 8)
    device = environment.prepare_runtime(run.runtime)
    rows = []
    with progress("asking", len(paths.SUBJECTS), "models") as bar:
        for answer in prediction.predict(whole, device, length):
            bar.advance(model=answer.subject)
            if answer.missing:
                made = answer.why_not or f"not there yet: dvc repro {answer.missing}"
                rows.append((answer.subject, "", made, ""))
                continue
            choices = ", ".join(f"{c.strip()} {share:.0%}" for c, share in answer.choices)
            rows.append((answer.subject, answer.held_as, repr(answer.text.strip()), choices))
    print(f"prompt: {whole!r}")
    terminal.show_table(("model", "held as", "answer", "share among the choices"), rows)


@app.command()
def doctor() -> None:
    """Try what can be computed on this machine: links, versions, each precision."""
    from bitrank import doctor as examination

    found = [(f.name, f.status, f.detail) for f in examination.examine()]
    terminal.show_table(("what", "status", "detail"), found)


@app.command()
def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Free it; else only tell.")] = False,
    checkpoint_days: Annotated[
        float, typer.Option(min=0, help="Keep checkpoints of trainings that are younger.")
    ] = 14,
    own_cache: Annotated[
        bool, typer.Option("--own-cache", help="No other project uses a cache outside of this one.")
    ] = False,
) -> None:
    """Free what no workspace, branch, tag, experiment or kept sweep refers to."""
    from bitrank import garbage
    from bitrank.tables import format_bytes

    with garbage.alone() if delete else nullcontext():
        found = garbage.find(checkpoint_days, own_cache)
        free = found.shares()
        rows = [(f"{what} {s.kind}", f"{s.files:,}", format_bytes(s.size))
                for what, shares in (("kept for", found.kept), ("free:", free))
                for s in shares]  # fmt: skip
        terminal.show_table(("what", "files", "size"), rows)
        if delete:
            garbage.delete(found)
    size = format_bytes(sum(share.size for share in free))
    print(f"freed {size}" if delete else f"nothing was deleted; bitrank gc --delete frees {size}")


def main() -> None:
    warnings.simplefilter("ignore", FutureWarning)  # the libraries' own news for their authors
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        app()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
