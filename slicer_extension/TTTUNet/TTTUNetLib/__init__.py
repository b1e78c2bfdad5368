"""The parts of the module TTTUNet, one class per file.

Slicer's own Python needs the standard library and numpy only: the network runs in a worker process
of an environment of its own (`Installer`), and the engine's client is read from there
(`EngineClient`).
"""
