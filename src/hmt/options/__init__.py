"""What a run is: one field, one flag, one line of help.

These files import neither torch nor transformers, so that `hmt --help` answers at once.
"""

from hmt.options.base import (
    AugmentOptions,
    ModelOptions,
    OutputOptions,
    ReadingOptions,
    TaskOptions,
    parse_count,
    parse_counts,
)
from hmt.options.harness import HarnessOptions
from hmt.options.listing import TasksOptions
from hmt.options.profiling import ProfileOptions
from hmt.options.reporting import ReportOptions
from hmt.options.scoring import DemoOptions, EvaluateOptions
from hmt.options.training import TrainOptions
from hmt.options.writing import (
    API_KEY,
    GREEDY_TEMPERATURE,
    LOOPBACK,
    ChatOptions,
    ConvertOptions,
    GenerateOptions,
    RememberOptions,
    SamplingOptions,
    ServeOptions,
)

__all__ = [
    "API_KEY",
    "GREEDY_TEMPERATURE",
    "LOOPBACK",
    "AugmentOptions",
    "ChatOptions",
    "ConvertOptions",
    "DemoOptions",
    "EvaluateOptions",
    "GenerateOptions",
    "HarnessOptions",
    "ModelOptions",
    "OutputOptions",
    "ProfileOptions",
    "ReadingOptions",
    "RememberOptions",
    "ReportOptions",
    "SamplingOptions",
    "ServeOptions",
    "TaskOptions",
    "TasksOptions",
    "TrainOptions",
    "parse_count",
    "parse_counts",
]
