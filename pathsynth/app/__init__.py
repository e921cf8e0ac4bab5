"""A local web page that draws images with the trained LoRA, and again from their PNG files."""
