# What is said, and refused, before the first job of a run.

from snakemake.exceptions import WorkflowError

from gigapipe.configuration.pyramids import PyramidPixels
from gigapipe.gdc.client import addresses_of
from gigapipe.slides.disk_space import Wanted, announce


onstart:
    hold_results()
    forget_failures()
    note_divisions(RESULTS, list(DIVISIONS.values()))
    announce_work()


def with_pyramid():
    """The slides whose pyramids are made."""
    folder = RESULTS / "pyramids"
    return {path.name for path in folder.glob("[!.]*")} & set(SHEET)


def to_fetch():
    """The slides that neither are here nor have a pyramid: their files, and what `announce` is told of them."""
    made, wanted = with_pyramid(), {}
    for slide in REMOTE:
        path = path_of_slide(slide)
        if slide not in made and not path.exists():
            row = SHEET[slide]
            name, size = row.get("filename", ""), int(row.get("size") or 0)
            addresses = addresses_of(
                row["source"], name, CONFIG.gdc.api, CONFIG.gdc.mirrors
            )
            wanted[path] = Wanted(addresses, size, resumable=bool(row.get("md5")))
    return wanted


def pixels_of_pyramids(slide):
    """The settings with which a slide's pyramid is made."""
    mpp = SHEET[slide].get("mpp")
    pixels = {
        name: getattr(CONFIG.pyramids, name) for name in PyramidPixels.model_fields
    }
    return pixels | {
        "mpp": float(mpp) if mpp else None,
        "reader": reader_of(slide_file(slide)),
    }


def to_convert():
    """The slides that have no pyramid: their files, here or not, and what `sizes.announce` is told of them."""
    # What this imports takes a second, which jobs, who read this file too, need not wait for.
    from gigapipe.pyramids.settings import Settings

    made, wanted = with_pyramid(), {}
    for slide in set(SHEET) - made:
        settings = Settings(**pixels_of_pyramids(slide))
        wanted[path_of_slide(slide)] = (settings, int(SHEET[slide].get("size") or 0))
    return wanted


def announce_work():
    """Say what is going to be fetched and made, and refuse what no disk can hold."""
    from gigapipe.pyramids import sizes

    try:
        announce(to_fetch(), CONFIG.keep_slides, PYRAMIDS_PER_NODE)
        sizes.announce(
            to_convert(),
            [resolution.mpp for resolution in CONFIG.resolutions],
            RESULTS,
        )
    except (InputError, OSError) as error:
        raise WorkflowError(said(error))
