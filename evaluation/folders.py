"""Metrics of a folder of predictions against folders of truths and trimaps, matched by file name without suffix."""

from pathlib import Path

from data.images import DataError, as_grey, find_images, read_alpha, read_raw, to_uint8
from evaluation.metrics import measure, unknown_region

Table = dict[str, Path]


def evaluate_folders(pred_dir: Path, label_dir: Path, trimap_dir: Path) -> dict[str, dict[str, float]]:
    """Measure every image of a test set on its unknown region; one image is in memory at a time.

    Args:
        pred_dir: predicted alphas, 8- or 16-bit grey; 16 bit is rounded to 8.
        label_dir: true alphas, as `pred_dir`; their names are the list of what must be there.
        trimap_dir: trimaps of 0, 128 and 255 alone.

    Returns: name without suffix -> metric -> value, sorted by name.

    Raises:
        DataError: any file missing, extra, unreadable, misshapen or of wrong values, one error lists all of them; or no
            unknown pixel in the whole set.
    """
    folders = (pred_dir, label_dir, trimap_dir)
    problems: list[str] = []
    tables = [_pictures_by_name(folder, problems) for folder in folders]
    truths = tables[1]
    for folder, table in zip(folders, tables, strict=True):
        if table and truths:  # of an empty or missing folder, one problem says it all
            problems += [f"{folder}/{name}.* is missing" for name in truths if name not in table]
            problems += [f"{table[name]} is extra: no truth has its name" for name in table if name not in truths]
    rows: dict[str, dict[str, float]] = {}
    has_unknown = False
    for name in sorted(truths):
        if all(name in table for table in tables):
            pred_path, label_path, trimap_path = (table[name] for table in tables)
            try:
                rows[name], counts = _measure_files(pred_path, label_path, trimap_path)
                has_unknown |= counts
            except ValueError as error:  # DataError and what the metrics refuse
                problems.append(str(error))
    if problems:
        raise DataError("\n".join([f"{len(problems)} problems, nothing evaluated:", *problems]))
    if not has_unknown:  # each image alone has no error then; an average of none would look like a perfect score
        raise DataError(f"no trimap in {trimap_dir} has an unknown pixel (128), so that nothing can be measured")
    return rows


def _pictures_by_name(folder: Path, problems: list[str]) -> Table:
    """Index a folder by name without suffix; what is wrong with it goes to `problems`."""
    table: Table = {}
    try:
        for path in find_images(folder):
            if path.stem in table:
                problems.append(f"{path} and {table[path.stem].name} have one name: keep one of them")
            table[path.stem] = path
    except FileNotFoundError as error:
        problems.append(str(error))
    return table


def _measure_files(pred_path: Path, label_path: Path, trimap_path: Path) -> tuple[dict[str, float], bool]:
    """Measure one image and tell whether it has an unknown pixel."""
    region = unknown_region(as_grey(read_raw(trimap_path), trimap_path), trimap_path)
    alpha, pred_alpha = (to_uint8(read_alpha(path)) for path in (label_path, pred_path))
    wrong = [
        f"{path} is {picture.shape[1]} x {picture.shape[0]} px"
        for path, picture in ((pred_path, pred_alpha), (trimap_path, region))
        if picture.shape != alpha.shape
    ]
    if wrong:
        raise DataError(f"{', '.join(wrong)}, but {label_path} is {alpha.shape[1]} x {alpha.shape[0]} px")
    return measure(pred_alpha, alpha, region), bool(region.any())
