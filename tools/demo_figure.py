"""The picture in the README: the overlays of `tttunet demo`, side by side."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

HEIGHT = 420
GAP = 8
SAMPLES = ("fluorescence", "fluorescence_crowded", "histology_purple", "histology_white")


def main() -> None:
    pictures = []
    for name in SAMPLES:
        picture = Image.open(Path("demo-output") / f"{name}_overlay.png").convert("RGB")
        width = round(picture.width * HEIGHT / picture.height)
        pictures.append(picture.resize((width, HEIGHT), Image.Resampling.LANCZOS))
    total = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    figure = Image.new("RGB", (total, HEIGHT), "white")
    left = 0
    for picture in pictures:
        figure.paste(picture, (left, 0))
        left += picture.width + GAP
    figure.save("docs/images/demo.png", optimize=True)


if __name__ == "__main__":
    main()
