"""Draw the curves of runs, a panel for each metric."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from runtime.errors import UserError
from tools.runs.reading import Run, check_metrics, is_evaluation
from tools.runs.table import curve_of

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito
STYLES = ("-", "--", ":")  # after as many groups as there are colours
NUM_COLUMNS = 3
PANEL_INCHES = (4.6, 3.3)


def draw_curves(groups: Mapping[str, Sequence[Run]], metrics: Sequence[str], window: int, path: Path) -> None:
    """Draw a panel for each metric, with a colour for each group and a line for each run.

    The curve before smoothing is drawn faintly. Losses that are all positive have a logarithmic scale.

    Args:
        groups: of `group_by_seed`.
        metrics: names of curves; a run that lacks one has no line in its panel.
        window: lines over which training metrics are averaged.
        path: image to write.

    Raises:
        DataError: a metric is in no run.
        OSError: the image cannot be written.
        UserError: its suffix is of no kind of image.
    """
    from matplotlib.figure import Figure  # its Agg canvas needs no window system

    check_metrics(metrics, chain(*groups.values()))
    num_columns = min(NUM_COLUMNS, len(metrics))
    num_rows = math.ceil(len(metrics) / num_columns)
    figure = Figure(figsize=(PANEL_INCHES[0] * num_columns, PANEL_INCHES[1] * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flatten().tolist()
    for panel in panels[len(metrics) :]:
        panel.remove()
    handles = {}
    for metric, panel in zip(metrics, panels, strict=False):
        for index, (name, runs) in enumerate(groups.items()):
            colour, style = COLOURS[index % len(COLOURS)], STYLES[index // len(COLOURS) % len(STYLES)]
            for run in runs:
                raw, curve = run.curves.get(metric, {}), curve_of(run, metric, window)
                if raw != curve:
                    panel.plot(list(raw), list(raw.values()), color=colour, alpha=0.2, linewidth=0.8)
                marker = "." if is_evaluation(metric) or len(curve) == 1 else ""
                label = f"{name} ({len(runs)} seeds)" if len(runs) > 1 else name
                (handles[label],) = panel.plot(list(curve), list(curve.values()), style, color=colour, marker=marker)
        if "loss" in metric and all(value > 0 for line in panel.lines for value in line.get_ydata()):
            panel.set_yscale("log")
        panel.set(title=metric, xlabel="iteration")
        panel.grid(alpha=0.3)
    num_columns = min(4, len(handles))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=num_columns, fontsize="small")
    if path.suffix[1:].lower() not in (formats := figure.canvas.get_supported_filetypes()):
        raise UserError(f"{path}: expected the name of an image ending in .{', .'.join(sorted(formats))}")
    figure.savefig(path, dpi=110)
