"""From `conf/` to `params.yaml`, by exactly the calls that `dvc exp run` makes.

The bytes therefore agree whoever composes (a test compares them), and a point computed one way is
found in DVC's run-cache the other way. The file is not for editing: overrides are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bitrank import config
from bitrank.errors import UserError

CONF = Path("conf")


def compose_text(overrides: Sequence[str], conf: Path = CONF) -> str:
    """The text of `params.yaml` for these overrides, checked.

    Raises:
        UserError: no `conf/` here, an unknown group, option or key, or a bad override.
        ConfigError: with all faults of the values.
    """
    with composing(conf) as compose_one:
        return compose_one(overrides)


@contextmanager
def composing(conf: Path = CONF) -> Iterator[Callable[[Sequence[str]], str]]:
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


def _compose(overrides: Sequence[str]) -> str:
    try:
        composed = compose(config_name="config", overrides=list(overrides))
        OmegaConf.resolve(composed)
        text = OmegaConf.to_yaml(composed)
    except (HydraException, OmegaConfBaseException) as error:
        reasons = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
        raise UserError("cannot compose: " + " ".join(" ".join(reasons).split())) from None
    config.parse(OmegaConf.to_container(OmegaConf.create(text), resolve=True))
    return text
