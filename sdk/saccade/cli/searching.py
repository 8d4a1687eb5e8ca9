"""Commands that search pictures: index, search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from saccade.cli.app import AsJson, BundleName, Device, EngineName, Threads, app
from saccade.errors import UsageError
from saccade.terminal import counting, new_table, out, print_json

if TYPE_CHECKING:
    import saccade

GalleryPath = Annotated[Path, typer.Argument(metavar="GALLERY", help="The gallery's own folder.")]


@app.command()
def index(
    bundle: BundleName,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Pictures, in it and below.")],
    gallery: GalleryPath,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Pictures per run.")] = 32,
    engine: EngineName = "auto",
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Make a folder of pictures searchable, or bring its gallery up to date: only what changed is read.

    Stop it whenever you like: it goes on where it stopped. Example:
    saccade index my_clip holiday/ holiday.gallery
    """
    from saccade.gallery import Gallery

    with _model(bundle, engine, device, threads) as model, counting("indexing") as advance:
        made = Gallery.index(folder, model, gallery, batch_size=batch, progress=advance)
    changes = made.changes
    assert changes is not None
    if as_json:
        return print_json(
            {
                "gallery": str(gallery),
                "pictures": len(made),
                "new": changes.new,
                "changed": changes.changed,
                "removed": changes.removed,
                "skipped": dict(changes.skipped),
            }
        )
    out.print(
        f"{escape(str(gallery))}: {len(made)} pictures; {changes.new} new, {changes.changed} changed, "
        f"{changes.removed} removed"
    )
    for name, reason in changes.skipped.items():
        out.print(f"skipped {escape(name)}: {escape(reason)}")
    out.print(f'next: saccade search {escape(bundle)} {escape(str(gallery))} "what to look for"')


@app.command()
def search(
    bundle: BundleName,
    gallery: GalleryPath,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="What to look for.")] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A picture to look for others like it.")
    ] = None,
    top: Annotated[int, typer.Option(metavar="K", min=1, help="Pictures to find.")] = 10,
    sheet: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.png", help="Also show the pictures on one sheet.")
    ] = None,
    engine: EngineName = "auto",
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Find the pictures of a gallery nearest to a text or to a picture.

    Example: saccade search my_clip holiday.gallery "a dog on a beach" --out found.png
    """
    from saccade.gallery import Gallery

    query = text if image is None else image
    if query is None or (text is not None and image is not None):
        raise UsageError("say what to look for: a text, or --image FILE")
    with _model(bundle, engine, device, threads) as model:
        hits = Gallery(gallery, model).search(query, top)
    if sheet is not None:
        from saccade.gallery.sheet import contact_sheet

        if sheet.exists():
            raise UsageError(f"{sheet} exists already: choose another --out")
        contact_sheet(hits, str(query)).save(sheet)
    if as_json:
        found = [{"picture": str(hit.path), "similarity": hit.similarity} for hit in hits]
        return print_json({"query": str(query), "hits": found})
    table = new_table("picture", "similarity>")
    for hit in hits:
        table.add_row(escape(str(hit.path)), f"{hit.similarity:.3f}")
    out.print(table)


def _model(
    bundle: str, engine: str, device: str, threads: int | None
) -> saccade.Embedder | saccade.ZeroShotClassifier:
    """The bundle's predictor, which must embed pictures."""
    import saccade

    predictor = saccade.load(bundle, engine=engine, device=device, threads=threads)
    if not isinstance(predictor, saccade.Embedder | saccade.ZeroShotClassifier):
        predictor.close()
        raise UsageError(f"{bundle} is made for {predictor.card.task}: searching needs a CLIP model's bundle")
    return predictor
