"""Sources of images: phantoms, local archives, MedMNIST downloads."""
