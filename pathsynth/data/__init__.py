"""Data sets: labels, archives, the prepared layout, generated images, licences."""
