"""The atlas: a page of the accepted images by class, with look-alikes and a quiz."""
