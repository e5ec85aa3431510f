"""Layers of Trax's research folder that its supervised models are built of."""
