"""A volume to try the module with; it ships with it, so that no network is needed."""

from __future__ import annotations

from pathlib import Path

#: Where Slicer's module Sample Data shows it.
CATEGORY = "TTT-UNet"
_RESOURCES = Path(__file__).resolve().parents[1] / "Resources"
_HIPPOCAMPUS = _RESOURCES / "SampleData" / "hippocampus.nii.gz"
_SHA256 = "a11afe66fc33de7781adda9db9287ea8695971ed8a9498c1374d6592ab64f506"


def register() -> None:
    """Offer the volume in Slicer's module Sample Data, which compares the checksum."""
    from SampleData import SampleDataLogic

    SampleDataLogic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName="TTTUNetHippocampus",
        uris=_HIPPOCAMPUS.as_uri(),
        fileNames=f"TTTUNet-{_HIPPOCAMPUS.name}",
        nodeNames="Hippocampus",
        thumbnailFileName=str(_RESOURCES / "Icons" / "Hippocampus.png"),
        checksums=f"SHA256:{_SHA256}",
    )
