"""What `model.json` holds: the network, the plan, the labels, the card, the weights' checksum."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, model_validator

from tttunet.imaging.intensity import Intensity
from tttunet.imaging.orientation import check_orientation
from tttunet.networks.config import NetworkConfig, StrictModel

FORMAT_VERSION = 1
WEIGHTS_NAME: Final = "model.safetensors"
CARD_NAME = "model.json"

#: SNOMED CT: `SCT^10200004^Liver`.
_CONCEPT = r"SCT\^\d{6,18}\^[^~^]+"
#: Output channels of every instance model: logits of three classes, then a distance map.
INSTANCE_CHANNELS = ("background", "interior", "boundary", "distance")


class InstanceDecoding(StrictModel):
    """How instances are read from the network's maps (see `inference.instances`).

    Attributes:
        foreground: a pixel belongs to an object if its interior + boundary probability exceeds it.
        prominence: an object is a peak of the distance map that rises at least this much above
            the saddle to a higher one; smaller values split more.
        smoothing: Gaussian sigma in pixels applied to the distance map before peaks are sought.
        confidence: objects whose mean foreground probability is lower are dropped.
        min_size: smaller objects (pixels or voxels) are dropped.
        fill_holes: fill holes inside objects.
    """

    foreground: float = Field(0.5, gt=0, lt=1)
    prominence: float = Field(0.15, gt=0, lt=1)
    smoothing: float = Field(1.0, ge=0)
    confidence: float = Field(0.7, ge=0, lt=1)
    min_size: int = Field(15, ge=0)
    fill_holes: bool = True


class Plan(StrictModel):
    """Everything between an image file and the network's input, and back.

    Attributes:
        patch_size: spatial size of training patches and of inference tiles, in pixels.
        spacing: grid the network works on, one number per axis of the network, after `orientation`
            and `transpose`, in `unit`; None: the image's own. A 2D model leaves the spacing of a
            volume's slices as it is.
        unit: `millimeter` or `micrometer`; None: spacings are compared as mere numbers.
        frame: size in pixels to which every image is brought, whatever its own: for cameras
            without scale, such as endoscopes. Only for 2D models, and without a spacing.
        channels: `rgb`: three channels, grey images are repeated, RGBA loses its alpha;
            `as_is`: exactly `NetworkConfig.input_channels` channels.
        normalisation: `percentile` maps percentiles `low`..`high` of the whole image (all
            channels together) to 0..1; `zscore` is mean 0, standard deviation 1 per channel.
        intensities: nnU-Net's normalisation, one rule per input channel; takes the place of
            `normalisation`.
        orientation: such as `LPS`: axes of volumes are permuted and flipped to run as nearly that
            way as possible (see `imaging.orientation`); None: as stored.
        transpose: order of the spatial axes for the network, after `orientation` (nnU-Net's
            `transpose_forward`); None: as they are.
        crop: `nonzero` cuts the box around everything that is not zero in all channels.
        decoding: only for instance models.
        mirror_axes: axes (of the spatial axes) that test-time augmentation may flip.
        keep_largest: groups of labels of which only the largest connected component is kept, each
            group as one mask (see `inference.components`).
    """

    patch_size: tuple[int, ...]
    spacing: tuple[float, ...] | None = None
    unit: Literal["micrometer", "millimeter"] | None = None
    frame: tuple[int, int] | None = None
    channels: Literal["rgb", "as_is"] = "as_is"
    normalisation: Literal["percentile", "zscore"] = "percentile"
    percentiles: tuple[float, float] = (0.5, 99.8)
    intensities: tuple[Intensity, ...] | None = None
    orientation: str | None = None
    transpose: tuple[int, ...] | None = None
    crop: Literal["none", "nonzero"] = "none"
    decoding: InstanceDecoding | None = None
    mirror_axes: tuple[int, ...] = ()
    keep_largest: tuple[tuple[int, ...], ...] = ()

    @model_validator(mode="after")
    def _geometry(self) -> Plan:
        if self.orientation is not None:
            check_orientation(self.orientation)
        if self.transpose is not None and sorted(self.transpose) != list(
            range(len(self.transpose))
        ):
            raise ValueError(f"transpose {list(self.transpose)} is no order of axes")
        if self.spacing is not None and min(self.spacing) <= 0:
            raise ValueError(f"spacing {list(self.spacing)} must be positive")
        if self.frame is not None and (
            min(self.frame) < 1 or self.spacing is not None or len(self.patch_size) != 2
        ):
            raise ValueError("frame must be positive, of a 2D model, and without a spacing")
        return self


class Label(StrictModel):
    """One foreground class.

    Attributes:
        value: its number.
        name: for people.
        color: 8-bit RGB.
        code: SNOMED CT as 3D Slicer writes it, `SCT^10200004^Liver`, perhaps `~` and a modifier
            (see `models.labels.Code`).
    """

    value: int = Field(ge=1)
    name: str
    color: tuple[int, int, int] | None = None
    code: str | None = Field(None, pattern=rf"^{_CONCEPT}(~{_CONCEPT})?$")


class DataSource(StrictModel):
    """A data set the weights were trained on."""

    title: str
    source: str
    licence: str


class Card(StrictModel):
    """What a person should know before using a model."""

    title: str
    description: str = ""
    licence: str = "unknown"
    authors: tuple[str, ...] = ()
    data: tuple[DataSource, ...] = ()
    training: dict[str, Any] = Field(default_factory=dict)
    scores: dict[str, Any] = Field(default_factory=dict)
    limitations: str = ""
    parent: str | None = None


class Weights(StrictModel):
    """The weights file beside model.json, its checksum and its size."""

    file: Literal["model.safetensors"] = WEIGHTS_NAME
    sha256: str
    bytes: int


class ModelConfig(StrictModel):
    """The content of `model.json`.

    Attributes:
        label_table: name of the table that the labels are of, if any.
        regions: the network has one output per label, the logit of a region that may overlap with
            others (nnU-Net's region-based training). A label is written over those before it.
    """

    format: int = FORMAT_VERSION
    name: str
    version: str = "1.0.0"
    task: Literal["instance", "semantic"]
    network: NetworkConfig
    plan: Plan
    labels: tuple[Label, ...]
    label_table: str | None = None
    regions: bool = False
    card: Card
    weights: Weights | None = None

    @property
    def maps(self) -> int:
        """Maps that a prediction has: the network's outputs, of regions with background."""
        return self.network.output_channels + self.regions

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        channels = self.network.output_channels
        known = {label.value for label in self.labels} if self.task == "semantic" else set()
        if not known.issuperset(value for group in self.plan.keep_largest for value in group):
            raise ValueError("plan.keep_largest has numbers that are no labels")
        if self.task == "instance":
            if channels != len(INSTANCE_CHANNELS):
                raise ValueError(
                    f"an instance model has {len(INSTANCE_CHANNELS)} outputs, not {channels}"
                )
            if self.plan.decoding is None:
                raise ValueError("an instance model needs plan.decoding")
        elif self.maps != len(self.labels) + 1:
            needed = len(self.labels) + (not self.regions)
            raise ValueError(f"{len(self.labels)} labels need {needed} outputs")
        if self.regions and self.task == "instance":
            raise ValueError("regions are for models of classes")
        rules = self.plan.intensities
        if rules is not None and len(rules) != self.network.input_channels:
            raise ValueError("plan.intensities and network.input_channels disagree")
        if len(self.plan.patch_size) != self.network.dim:
            raise ValueError("plan.patch_size and network.dim disagree")
        return self
