"""Which scans a folder holds, and which label map belongs to which."""

from dataclasses import dataclass
from pathlib import Path

from lhanet_export.errors import RefusedInput

#: Sub-folders `images...` and `labels...` of one ending belong together: plain, AMOS22's, and the public loader's.
_ENDINGS = ("", "Tr", "Va", "Val", "Ts")
#: The longer one first: every `.nii.gz` must lose both.
_SUFFIXES = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Entry:
    """A scan and, where it has one, its segmentation."""

    image: Path
    labels: Path | None


def entries_in(folder: Path) -> list[Entry]:
    """The scans of a folder, sorted by sub-folder and name, each with the label map of the same name.

    Either `images/` with `labels/` beside it or not (also `imagesTr/`, `imagesVa/`, `imagesVal/`, `imagesTs/` with
    `labelsTr/` and so on, as many of them as there are), or the scans themselves, without labels. A scan may lack
    its label map. Names end in `.nii` or `.nii.gz`; other files and hidden ones are not looked at, and none is opened.
    Raises `RefusedInput` where this is not clear: no folder, no scan, labels without a scan, one name twice, both
    layouts at once.
    """
    if not folder.exists():
        raise RefusedInput(f"the folder {folder} does not exist")
    if not folder.is_dir():
        raise RefusedInput(f"{folder} is a file; name the folder that it lies in")
    pairs = [
        (images, folder / f"labels{ending}") for ending in _ENDINGS if (images := folder / f"images{ending}").is_dir()
    ]
    flat = _volumes(folder)
    lonely = [f"labels{end}" for end in _ENDINGS if (folder / f"labels{end}").is_dir()]
    lonely = [name for name in lonely if (folder / name) not in [labels for _, labels in pairs]]
    if lonely:
        raise RefusedInput(f"{folder} has {lonely[0]}/ without images{lonely[0].removeprefix('labels')}/ beside it")
    if pairs and flat:
        name = next(iter(flat.values())).name
        raise RefusedInput(f"{folder} holds {name} beside {pairs[0][0].name}/; move the scans into one of the two")
    entries = [entry for images, labels in pairs for entry in _paired(images, labels)]
    entries += [Entry(path, None) for path in flat.values()]
    if not entries:
        where = " or ".join(f"{images.name}/" for images, _ in pairs) or "images/"
        raise RefusedInput(f"{folder} holds no .nii or .nii.gz file, neither itself nor in {where}")
    return sorted(entries, key=lambda entry: entry.image)


def stem_of(path: Path) -> str | None:
    """A NIfTI file's name without `.nii` or `.nii.gz`, None for any other file's."""
    suffix = next((suffix for suffix in _SUFFIXES if path.name.lower().endswith(suffix)), None)
    return path.name[: -len(suffix)] if suffix else None


def _paired(images: Path, labels: Path) -> list[Entry]:
    scans = _volumes(images)
    maps = _volumes(labels) if labels.is_dir() else {}
    for name in sorted(maps.keys() - scans.keys()):
        raise RefusedInput(f"{maps[name]} has no scan of this name in {images}; remove one or add the other")
    return [Entry(path, maps.get(name)) for name, path in scans.items()]


def _volumes(folder: Path) -> dict[str, Path]:
    """The NIfTI files of a folder by their names without the suffix."""
    found: dict[str, Path] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise RefusedInput(f"cannot read the folder {folder}: {error.strerror}") from error
    for path in paths:
        name = stem_of(path)
        if name is None or path.name.startswith(".") or not path.is_file():
            continue
        if name in found:
            raise RefusedInput(f"{folder} holds {found[name].name} and {path.name}; keep the one that is meant")
        found[name] = path
    return found
