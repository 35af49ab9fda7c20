"""The verbs of the `hmt` command."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path


@dataclass(frozen=True)
class Verb:
    """A verb of the command.

    Attributes:
        options: Module and class of its options, as in module:Class; importing it must not import torch.
        module: Module whose `run(options)` returns figures for --json and a text for standard output.
    """

    options: str
    module: str

    @property
    def options_class(self) -> type:
        """Class of the options."""
        module, _, name = self.options.partition(":")
        return getattr(import_module(module), name)

    @property
    def summary(self) -> str:
        """First line of the options' docstring."""
        return str(self.options_class.__doc__).splitlines()[0]


VERBS = {
    "demo": Verb("hmt.cli.demo:DemoOptions", "hmt.cli.demo"),
    "train": Verb("hmt.training.options:TrainOptions", "hmt.cli.train"),
    "evaluate": Verb("hmt.evaluation.options:EvaluateOptions", "hmt.cli.evaluate"),
    "profile": Verb("hmt.evaluation.options:ProfileOptions", "hmt.cli.profile"),
    "remember": Verb("hmt.cli.remember:RememberOptions", "hmt.cli.remember"),
    "generate": Verb("hmt.cli.generate:GenerateOptions", "hmt.cli.generate"),
    "chat": Verb("hmt.cli.chat:ChatOptions", "hmt.cli.chat"),
    "serve": Verb("hmt.cli.serve:ServeOptions", "hmt.cli.serve"),
    "harness": Verb("hmt.harness:HarnessOptions", "hmt.harness.evaluation"),
    "report": Verb("hmt.report:ReportOptions", "hmt.report.publish"),
    "tasks": Verb("hmt.cli.tasks:TasksOptions", "hmt.cli.tasks"),
    "convert": Verb("hmt.cli.convert:ConvertOptions", "hmt.cli.convert"),
}

PUBLISHED = {"published": Verb("hmt.compat.published:PublishedOptions", "hmt.compat.published")}
"""The command line of `hmt_src/main.py`."""

PRESETS = {path.stem: path for path in sorted((Path(__file__).parents[1] / "presets").glob("*.yaml"))}
"""Settings files that come with the package, for --config by name."""
