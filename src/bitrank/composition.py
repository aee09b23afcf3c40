"""From `conf/` to `params.yaml`, by exactly the calls that `dvc exp run` makes.

The bytes therefore agree whoever composes (a test compares them), and a point computed one way is
found in DVC's run-cache the other way. The file is not for editing: overrides are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import __version__ as hydra_version
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bitrank import config, identity, records
from bitrank.errors import UserError
from bitrank.projection import flatten, parse_yaml

CONF = Path("conf")
REMEMBERED = Path(".dvc/tmp/composed")
RESOLVER = re.compile(r"\$\{[\w.]+:")
"""What is read from elsewhere when composed, such as a variable of the environment."""

Compose = Callable[[Sequence[str]], str]


def compose_text(overrides: Sequence[str], conf: Path = CONF) -> str:
    """The text of `params.yaml` for these overrides, checked.

    Raises:
        UserError: no `conf/` here, an unknown group, option or key, or a bad override.
        ConfigError: with all faults of the values.
    """
    with composing(conf) as compose_one:
        return compose_one(overrides)


@contextmanager
def composing(conf: Path = CONF) -> Iterator[Compose]:
    """Yield `compose_text` for many configurations of one folder; also within a Hydra application.

    Raises:
        UserError: no `conf/` here.
    """
    if not (conf / "config.yaml").is_file():
        raise UserError(f"{conf}/config.yaml does not exist: run this in the project's root")
    application = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf.resolve()), version_base=None):
            yield _compose
    finally:
        GlobalHydra.instance().hydra = application


def remembering(compose_one: Compose, conf: Path = CONF) -> Compose:
    """`compose_one`, which takes Hydra 0.2 seconds, once for each content of `conf/` and our code.

    Nothing is remembered where `conf/` asks a resolver, whose answer may be another next time.
    """
    files = [*conf.rglob("*.yaml"), *Path(__file__).parent.glob("*.py")]
    known = identity.hash_json(
        [hydra_version, sorted((str(file), identity.hash_file(file)) for file in files)]
    )
    if any(RESOLVER.search(file.read_text("utf-8")) for file in files if file.suffix == ".yaml"):
        return compose_one

    def read_back(overrides: Sequence[str]) -> str:
        file = REMEMBERED / f"{identity.hash_json([known, list(overrides)])}.yaml"
        if not file.is_file():
            records.write_text(file, compose_one(overrides))
        return file.read_text("utf-8")

    return read_back


def _compose(overrides: Sequence[str]) -> str:
    text = compose_unchecked(overrides)
    config.parse(OmegaConf.to_container(OmegaConf.create(text), resolve=True))
    return text


def compose_unchecked(overrides: Sequence[str]) -> str:
    """Within `composing`: the text alone, also of a `conf/` whose sections are not today's.

    Raises:
        UserError: an unknown group, option or key, or a bad override.
    """
    try:
        composed = compose(config_name="config", overrides=list(overrides))
        OmegaConf.resolve(composed)
        return OmegaConf.to_yaml(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"cannot compose: {_explain(error)}") from None


def _explain(error: Exception) -> str:
    """What Hydra says, without its advice to append a key, which our sections refuse."""
    unknown = re.match(r"Could not override '([\w.@/]+)'", str(error))
    if unknown and "is not in struct" in str(error.__cause__):
        return (
            f"`{unknown[1]}` is not a key with these options; `bitrank params` without it writes "
            "all that there are into params.yaml"
        )
    several = re.match(r"Ambiguous value for argument '([^']+)'", str(error))
    if several:
        return (
            f"`{several[1]}` has several values: to run each, `bitrank-sweep {several[1]}`; a list "
            "is written in brackets, a text with a comma in quotes within quotes"
        )
    reasons = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
    # Where Hydra searched is its own business and this machine's.
    return " ".join(" ".join(reasons).partition("Config search path")[0].split())


def list_changes(before: str | None, text: str) -> list[str]:
    """One line a value that differs; none when there was no file, or none that can be read."""
    if before is None:
        return []
    try:
        old, new = flatten(parse_yaml(before)), flatten(parse_yaml(text))
    except ValueError:
        return []
    names = [*old, *(name for name in new if name not in old)]
    return [
        f"  {name}: {old.get(name, '(absent)')} -> {new.get(name, '(absent)')}"
        for name in names
        if old.get(name) != new.get(name)
    ]
