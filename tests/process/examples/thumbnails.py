"""Makes pictures smaller.

python thumbnails.py holiday/*.jpg      # enqueues them
queue-actor work thumbnails:app         # makes the thumbnails, in child processes
"""

import sys
from pathlib import Path

import msgspec
from PIL import Image, UnidentifiedImageError

from queue_actor.client import Client, NewJob
from queue_actor.worker import App, Reject

app = App(queue="thumbnails")


class Picture(msgspec.Struct):
    path: str
    pixels: int = 128


@app.job("shrink", mode="processes")
def shrink(picture: Picture) -> dict[str, object]:
    source = Path(picture.path)
    target = source.with_name(f"{source.stem}-{picture.pixels}.png")
    part = target.with_suffix(".part")
    try:
        with Image.open(source) as image:
            image.thumbnail((picture.pixels, picture.pixels))
            image.save(part, "PNG")
            size = image.size
    except UnidentifiedImageError as error:
        raise Reject(f"{source.name} is no picture") from error
    part.replace(target)  # whole or not at all: a job may be run twice
    return {"path": str(target), "size": size}


if __name__ == "__main__":
    with Client() as client:
        pictures = [NewJob("shrink", Picture(str(Path(path).resolve()))) for path in sys.argv[1:]]
        for job in client.enqueue_many("thumbnails", pictures).done:
            print(f"thumbnails/{job.id}")
