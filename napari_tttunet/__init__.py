"""TTT-UNet in napari. The manifest `napari.yaml` says what the plugin contributes.

    axes, geometry, placement   what a layer is and where it lies, as plain functions
    layers, regions             what the engine is told, and where labels go
    convert                     between images of the core and layers
    readers, writers            files
    sample_data                 napari's menu File > Open Sample
    settings                    what is remembered between sessions

Nothing here imports torch: networks run in the engine's process.
"""
