"""Dynamic partition: layers to stages and samples to ranks, by what was measured; meshes to fit."""
