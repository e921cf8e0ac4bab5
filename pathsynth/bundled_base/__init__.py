"""Training of the tiny Stable Diffusion in base/."""
