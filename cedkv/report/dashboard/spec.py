"""What a page of a dashboard may hold.

A page is one YAML file. Metric names are those of ``cedkv.ledger``, or patterns with ``*``. A limit is a number or the
dotted key of a configuration value, so that a page draws the line that a run was really held to.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, PrivateAttr, Strict

from cedkv.config.base import Count, Listed, Section

LEVELS: Final = ("info", "warning", "error")
Level = Literal["info", "warning", "error"]

Name = Annotated[str, Field(min_length=1, max_length=120)]
Metric = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./*\-]{1,200}$")]
KeyPath = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z0-9_]+)*$")]
Value = Annotated[float, Strict(False)] | KeyPath
"""A number, or the dotted key of a configuration value."""

BUILT_IN: Final = ("checks", "outcome", "runs", "warnings")
"""Tables that are not an artifact: the gates' checks, what is said beside them, the experiment's runs, the warnings."""


class Limit(Section):
    """A threshold line."""

    at: Value
    """Where it is: a number, or a key of the configuration, e.g. `phase3.thresholds.off_delta_p99_max`."""
    times: Value | None = None
    """A factor on it: a number or a key."""
    label: str = ""
    """What it is called; the key or number, if empty."""


class Panel(Section):
    """What every panel has."""

    title: Name
    """Shown above it."""
    note: str = ""
    """A sentence on how to read it."""
    width: Literal["full", "half", "third"] = "half"
    """Share of the page's width, on screens that are wide enough."""


class Number(Panel):
    """One metric, large, with its distance to a limit."""

    kind: Literal["number"]
    """A tile for every run."""
    metric: Metric
    """The metric; its last value is shown."""
    limit: Limit | None = None
    """What it is held to."""
    better: Literal["lower", "higher"] = "lower"
    """On which side of the limit it passes."""
    unit: str = ""
    """Shown behind the value."""


class Line(Panel):
    """Metrics over steps, a line for every run and metric."""

    kind: Literal["line"]
    """Lines over training steps."""
    metrics: Annotated[Listed[Metric], Field(min_length=1)]
    """Names or patterns."""
    right: Listed[Metric] = ()
    """Of them, those with an axis of their own on the right."""
    stairs: Listed[Metric] = ()
    """Of them, those that keep their value until the next one."""
    marks: Listed[Metric] = ()
    """Of them, those whose every logged value is marked."""
    limits: Listed[Limit] = ()
    """Threshold lines."""
    log: bool = False
    """Logarithmic left axis."""
    unit: str = ""
    """Title of the left axis."""
    right_unit: str = ""
    """Title of the right axis."""


class Area(Panel):
    """Metrics over steps, stacked; a chart for every run."""

    kind: Literal["area"]
    """Stacked areas over training steps."""
    metrics: Annotated[Listed[Metric], Field(min_length=1)]
    """Names or patterns, from the bottom up."""
    over: Listed[Metric] = ()
    """Drawn over the areas as lines."""
    limits: Listed[Limit] = ()
    """Threshold lines."""
    unit: str = ""
    """Title of the axis."""


class Bar(Panel):
    """Last values of metrics, stacked; a bar for every run."""

    kind: Literal["bar"]
    """Stacked bars."""
    metrics: Annotated[Listed[Metric], Field(min_length=1)]
    """Names or patterns."""
    unit: str = ""
    """Title of the axis."""


class Scatter(Panel):
    """Rows of an artifact as points, a chart for every run."""

    kind: Literal["scatter"]
    """Points from an artifact."""
    rows: Name
    """The artifact, JSON Lines or a JSON list of objects, e.g. `proxy_scatter.jsonl`."""
    x: Name
    """Key of the horizontal value."""
    y: Name
    """Key of the vertical value."""
    by: Name | None = None
    """Key that colours the points, and makes the legend."""
    frame: Name | None = None
    """Key whose values a slider goes through, e.g. `step`."""
    log: Listed[Literal["x", "y"]] = ()
    """Axes that are logarithmic; values that are not positive are left out."""
    limits: Listed[Limit] = ()
    """Threshold lines on y."""
    unit: str = ""
    """Unit of y."""


class Tail(Panel):
    """How many rows of an artifact lie over each value: the distribution, seen from its tail."""

    kind: Literal["tail"]
    """Share of rows at or over x; both axes logarithmic; a line for every run."""
    rows: Name
    """The artifact."""
    x: Name
    """Key of the value."""
    baseline: bool = False
    """Draw the Phase 2 run on the same data as well, where the experiment has one."""
    quantile: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Mark this quantile as the gates compute it."""
    bound: Metric | None = None
    """A metric drawn as the bound of that quantile."""
    limits: Listed[Limit] = ()
    """Threshold lines on x."""
    unit: str = ""
    """Unit of x."""


class Heatmap(Panel):
    """A table of numbers as colours, a chart for every run."""

    kind: Literal["heatmap"]
    """Rows of an artifact as a heat map."""
    rows: Name
    """The artifact."""
    y: Name
    """Key of a row's name."""
    values: Name
    """Key of its list of numbers, the columns."""
    frame: Name | None = None
    """Key whose values a slider goes through, e.g. `step`."""
    top: Limit | None = None
    """What the strongest colour stands for."""
    x_title: str = ""
    """What the columns are."""


class Runs(Panel):
    """Every run of the experiment as a point: one metric against another."""

    kind: Literal["runs"]
    """Points are runs; the ones looked at are marked."""
    x: Metric
    """Horizontal metric."""
    y: Metric
    """Vertical metric."""
    x_better: Literal["lower", "higher"] = "lower"
    """Which side of x is the good one."""
    y_better: Literal["lower", "higher"] = "higher"
    """Which side of y is the good one."""
    pareto: bool = False
    """Join the runs that no other one beats in both."""
    log: Listed[Literal["x", "y"]] = ()
    """Axes that are logarithmic."""
    x_limits: Listed[Limit] = ()
    """Threshold lines on x."""
    y_limits: Listed[Limit] = ()
    """Threshold lines on y."""
    x_unit: str = ""
    """Title of the x axis."""
    y_unit: str = ""
    """Title of the y axis."""


class Parallel(Panel):
    """Rows of an artifact as lines across upright axes, a key each; the first run that has such rows."""

    kind: Literal["parallel"]
    """Parallel coordinates."""
    rows: Name
    """The artifact."""
    keys: Annotated[Listed[Name], Field(min_length=1)]
    """Keys or patterns, from left to right; a key that spans more than a factor of 50 gets a logarithmic axis."""
    by: Name
    """Key of the number that colours the lines, dark where it is small."""


class Trials(Panel):
    """Metrics over steps of the best trials of a study and of the worst; the first run that is one."""

    kind: Literal["trials"]
    """Lines of a study's trials over training steps."""
    rows: Name = "tune/trials.jsonl"
    """The artifact that says which runs the trials are and how they rank."""
    metrics: Annotated[Listed[Metric], Field(min_length=1)]
    """Names or patterns."""
    best: Count = 2
    """How many of the best trials."""
    worst: Count = 1
    """How many of the worst ones."""
    stairs: Listed[Metric] = ()
    """Of the metrics, those that keep their value until the next one."""
    limits: Listed[Limit] = ()
    """Threshold lines."""
    log: bool = False
    """Logarithmic axis."""
    unit: str = ""
    """Title of the axis."""


class Table(Panel):
    """Rows as a table, one for every run."""

    kind: Literal["table"]
    """A table."""
    rows: Name
    """An artifact, or `checks`, `outcome`, `runs`, `warnings`."""
    columns: Listed[Name] = ()
    """Keys or patterns that are shown; all, if empty."""
    sort: Name | None = None
    """Key to sort by."""
    descending: bool = True
    """Largest first."""
    most: Count = 25
    """How many rows are shown."""
    group: Name | None = None
    """Sum rows up by this key; the columns are then n, the share over the limit, the quantile and the largest value."""
    value: Name | None = None
    """Of grouped rows: the key of the number."""
    limit: Limit | None = None
    """Of grouped rows: what counts as over."""


AnyPanel = Annotated[
    Number | Line | Area | Bar | Scatter | Tail | Heatmap | Runs | Parallel | Trials | Table,
    Field(discriminator="kind"),
]
KINDS: Final = (
    "number",
    "line",
    "area",
    "bar",
    "scatter",
    "tail",
    "heatmap",
    "runs",
    "parallel",
    "trials",
    "table",
)


class Rule(Section):
    """When a metric of a run deserves a look."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]
    """Its name: lower-case words joined by `-`. Acknowledgements are kept under it."""
    level: Level
    """How serious it is."""
    metric: Metric
    """What is looked at, a name without `*`."""
    at: Literal["last", "any"] = "last"
    """The last value, or any value over the steps."""
    over: Limit | None = None
    """Warn where the value is larger."""
    under: Limit | None = None
    """Warn where the value is smaller."""
    reaches: bool = False
    """Warn at the limit, too."""
    says: Name
    """What it means, in a sentence."""
    behind: Name | None = None
    """An artifact whose rows say more, e.g. which slots and documents."""


class Page(Section):
    """One page of a dashboard."""

    page: Name
    """Its title."""
    order: int = 100
    """Pages are shown by this number, then by title."""
    about: str = ""
    """A sentence under the title."""
    of: Literal["runs", "studies"] = "runs"
    """What it is about: the report of a run holds the pages of runs, that of a study (`cedkv tune`) those of studies."""
    panels: Annotated[Listed[AnyPanel], Field(min_length=1)]
    """What it shows, in this order."""
    warnings: Listed[Rule] = ()
    """What deserves a look."""

    _slug: str = PrivateAttr(default="page")

    @property
    def slug(self) -> str:
        """The page's name in an address: that of its file."""
        return self._slug
