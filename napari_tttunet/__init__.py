"""TTT-UNet in napari. The manifest `napari.yaml` says what the plugin contributes."""
