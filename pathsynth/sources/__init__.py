"""Sources of images: phantoms, local archives, folders of images, MedMNIST downloads."""
