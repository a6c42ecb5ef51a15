"""Training and testing detectors and segmenters on MMEngine's Runner, for ``attnzoo mm``."""
