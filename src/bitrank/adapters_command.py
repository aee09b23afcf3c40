"""The command `bitrank adapters`: what was trained here, and giving it to others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitrank import terminal
from bitrank.errors import UserError

if TYPE_CHECKING:
    from bitrank.collection import Adapter

app = typer.Typer(
    help="List the adapters of this project; push or register one.", invoke_without_command=True
)
HEADER = ("adapter", "base", "method", "data", "accuracy", "NLL (nats)", "sha256", "of base",
          "weights")  # fmt: skip


@app.callback()
def adapters(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every score.")] = False,
) -> None:
    """List the adapters of this project: the run's, and those of its sweeps and papers."""
    if context.invoked_subcommand is not None:
        return
    from bitrank import collection

    found, faults = collection.list_adapters()
    if as_json:
        body = {"adapters": [adapter.describe() for adapter in found], "unreadable": faults}
        print(json.dumps(body, indent=2))
        return
    if found:
        terminal.show_table(HEADER, [_row(adapter) for adapter in found])
        print("scores: mean ± standard error over the held-out items of the trained task")
    else:
        print("no adapter yet: dvc repro, or a sweep, trains one")
    for fault in faults:
        print(f"not listed: {fault}")


@app.command()
def push(
    which: Annotated[str, typer.Argument(help="Its name, or how its sha256 begins.")],
    target: Annotated[str, typer.Argument(help="A new folder; or hf://<owner>/<name>.")],
    public: Annotated[bool, typer.Option("--public", help="On the hub, for everybody.")] = False,
) -> None:
    """Give an adapter away: weights, PEFT's configuration, and a model card."""
    from bitrank import collection, pushing

    adapter = collection.find_adapter(which)
    if target.startswith(pushing.HUB):
        repo = target.removeprefix(pushing.HUB)
        where = pushing.push_to_hub(adapter, repo, public=public)
    elif public:
        raise UserError(f"--public is for the hub, {target} is a folder: hf://<owner>/<name>")
    else:
        pushing.push_to_folder(adapter, Path(target))
        where = target
    print(f"{adapter.name}, sha256 {adapter.adapter_hash[:12]}: {where}")


@app.command()
def register(
    which: Annotated[str, typer.Argument(help="Its name, or how its sha256 begins.")],
    name: Annotated[
        str | None, typer.Option(help="Of the registered model; else by its base and data.")
    ] = None,
) -> None:
    """Make an adapter a version of a model in MLflow's registry, its base named in the tags."""
    from bitrank import collection, config, registry

    adapter = collection.find_adapter(which)
    done = registry.register(adapter, config.load().tracking.experiment, name)
    print(f"{done.outcome}: {done.name} version {done.version} in {done.store}")


def _row(adapter: Adapter) -> list[str]:
    from bitrank import findings, tables
    from bitrank.runs import TASK

    run = adapter.run
    scores = (
        tables.measured(*(run.score("adapter", TASK, f"{name}{end}") for end in ("", "_stderr")))
        for name in ("acc", "nll")
    )
    base_hash = run.find("train", "treatment", "base_hash")
    return [
        adapter.name,
        tables.format_value(run.find("fetch", "treatment", "name")),
        findings.describe_method(run),
        tables.format_value(run.find("prepare", "treatment", "name")),
        *(score.text for score in scores),
        adapter.adapter_hash[:12],
        tables.format_value(base_hash, "hash"),
        "not here" if adapter.weights is None else adapter.weights.where,
    ]
