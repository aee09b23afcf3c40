"""Hydra's door to `bitrank.sweep`. Hydra takes plugins from this namespace package only."""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class PipelineSweeper(BasicSweeper):  # type: ignore[misc]
    """The product of all values, as Hydra's own; what happens to the points is `bitrank.sweep`'s.

    Named in `conf/sweep.yaml`, with `params`: the values to try unless the command line says
    otherwise.
    """

    def sweep(self, arguments: list[str]) -> Any:
        from bitrank import sweep  # this module is imported at every start of Hydra's

        given = [f"{key}={values}" for key, values in self.params.items()]
        assert self.config is not None
        assert self.launcher is not None
        sweep.run_sweep([*given, *arguments], self.config, self.launcher)
