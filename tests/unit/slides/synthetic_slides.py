"""Small real slides for tests: pyramidal, tiled JPEG, with the header of an Aperio scanner, and a known truth."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import tifffile

SIZE = (3072, 2560)  # width, height of level 0
TISSUE = (512, 512, 2304, 2048)  # left, top, right, bottom
HOLE = (1024, 1024, 1536, 1536)
PEN = (2500, 300, 2900, 2300)
GLASS, INK = (242, 240, 243), (35, 60, 180)


def picture(*, tissue: bool = True, hole: bool = True, pen: tuple[int, int, int] | None = INK) -> np.ndarray:
    """uint8 [2560, 3072, 3]: glass, an H&E-like square with a hole, a pen stroke beside it."""
    rng = np.random.default_rng(7)
    image = np.empty((SIZE[1], SIZE[0], 3), np.uint8)
    image[:] = GLASS
    if tissue:
        left, top, right, bottom = TISSUE
        coarse = rng.normal(0, 12, ((bottom - top) // 16, (right - left) // 16, 1))
        eosin = np.clip(np.array([214.0, 120.0, 172.0]) + coarse, 0, 255).astype(np.uint8)
        image[top:bottom, left:right] = cv2.resize(eosin, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
        for x, y in zip(rng.integers(left + 12, right - 12, 4000), rng.integers(top + 12, bottom - 12, 4000), strict=True):
            cv2.circle(image, (int(x), int(y)), int(rng.integers(5, 9)), (88, 56, 132), -1)
        if hole:
            left, top, right, bottom = HOLE
            image[top:bottom, left:right] = GLASS
    if pen:
        left, top, right, bottom = PEN
        image[top:bottom, left:right] = pen
    return image


def write_svs(path: Path, image: np.ndarray, *, mpp: float | None = 0.5, power: int | None = 20, levels: int = 3) -> Path:
    """Write `image` as a tiled JPEG pyramid (1, 1/4, 1/16) that OpenSlide takes for an Aperio scan."""
    facts = "".join([f"|AppMag = {power}" if power else "", f"|MPP = {mpp:.4f}" if mpp else ""])
    with tifffile.TiffWriter(path) as out:
        for level in range(levels):
            shape = (image.shape[1] >> 2 * level, image.shape[0] >> 2 * level)
            pixels = image if level == 0 else cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
            text = f"Aperio Image Library v11.2.1 \r\n{shape[0]}x{shape[1]} (256x256) JPEG/YCC Q=90{facts}"
            settings = {"tile": (256, 256), "compression": "jpeg", "compressionargs": {"level": 90}, "photometric": "rgb"}
            out.write(pixels, description=text, metadata=None, software=False, **settings)
    return path


def break_tiles(path: Path, tiles: list[tuple[int, int]]) -> Path:
    """Overwrite the start of the level-0 tiles (column, row) so that they cannot be decoded."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        across = -(-page.imagewidth // 256)
        starts = [page.dataoffsets[row * across + column] for column, row in tiles]
    with open(path, "r+b") as handle:
        for start in starts:
            handle.seek(start)
            handle.write(b"\0" * 64)
    return path


def write_dicom(folder: Path, levels: list[tuple[np.ndarray, float]], *, tile: int = 256) -> list[Path]:
    """Write images with their pixel spacing in mm as one DICOM series, a file a level, tiled JPEG, 20x."""
    import imagecodecs
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

    shared = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    paths = []
    for number, (image, spacing) in enumerate(levels):
        height, width = image.shape[:2]
        padded = np.pad(image, ((0, -height % tile), (0, -width % tile), (0, 0)), constant_values=255)
        corners = [(y, x) for y in range(0, height, tile) for x in range(0, width, tile)]
        tiles = [np.ascontiguousarray(padded[y : y + tile, x : x + tile]) for y, x in corners]
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = VLWholeSlideMicroscopyImageStorage, JPEGBaseline8Bit
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data, measures, functions, path_of_light = Dataset(), Dataset(), Dataset(), Dataset()
        measures.PixelSpacing, measures.SliceThickness = [spacing, spacing], 0.001
        functions.PixelMeasuresSequence = [measures]
        path_of_light.OpticalPathIdentifier, path_of_light.ObjectiveLensPower = "0", 20
        facts = {
            **shared,
            **{"SOPClassUID": meta.MediaStorageSOPClassUID, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID, "Modality": "SM"},
            "ImageType": ["DERIVED" if number else "ORIGINAL", "PRIMARY", "VOLUME", "RESAMPLED" if number else "NONE"],
            **{"DimensionOrganizationType": "TILED_FULL", "Rows": tile, "Columns": tile, "NumberOfFrames": len(tiles)},
            **{"TotalPixelMatrixColumns": width, "TotalPixelMatrixRows": height, "TotalPixelMatrixFocalPlanes": 1},
            **{"NumberOfOpticalPaths": 1, "SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL_422", "PlanarConfiguration": 0},
            **{"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0},
            **{"SharedFunctionalGroupsSequence": [functions], "OpticalPathSequence": [path_of_light]},
            "PixelData": encapsulate([imagecodecs.jpeg_encode(pixels, level=95, subsampling="444") for pixels in tiles]),
        }
        for keyword, value in facts.items():
            setattr(data, keyword, value)
        data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
        data.file_meta = meta
        paths.append(folder / f"level{number}.dcm")
        data.save_as(paths[-1], enforce_file_format=True)
    return paths


def write_mirax(path: Path) -> Path:
    """A slide of Mirax by its files alone: no pixel of it can be read."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True)
    path.write_bytes(b"\xff\xd8\xff\xe0 the preview")
    for name in ("Index.dat", "Data0000.dat", "Data0001.dat", "Unnamed.dat"):
        (folder / name).write_bytes(name.encode() * 20_000)
    files = "[DATAFILE]\r\nFILE_COUNT = 2\r\nFILE_0 = Data0000.dat\r\nFILE_1 = Data0001.dat\r\n"
    text = f"\ufeff[GENERAL]\r\nSLIDE_VERSION = 01.02\r\n[HIERARCHICAL]\r\nHIER_COUNT = 1\r\nINDEXFILE = Index.dat\r\n{files}"
    (folder / "Slidedat.ini").write_bytes(text.encode())
    return path
