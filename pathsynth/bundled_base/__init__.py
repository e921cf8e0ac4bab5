"""How the tiny Stable Diffusion in base/ is made."""
